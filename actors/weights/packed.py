"""Buckets of weights as bytes (`PackedWeights`), their checksum, and the samples that check what an engine has loaded.

Worked example, a bucket of two tensors in bfloat16:

    specs    (("model.embed_tokens.weight", "bfloat16", (49152, 576)), ("model.norm.weight", "bfloat16", (576,)))
    arrays   uint8 [56623104] and [1152]: views of the learner's memory. Ray's object store copies them once; readers share that copy

The stream holds what a model's file holds. A head that is tied to the embedding is not in it: the engine refreshes its own.
"""

import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

CHECKED_BYTES = 4096  # bytes of each tensor that the checksum reads, spread evenly
SAMPLED_ELEMENTS = 16  # elements of each tensor that are compared with what the engine holds after loading

TensorSpec = tuple[str, str, tuple[int, ...]]  # name, dtype such as "bfloat16", shape


@dataclass(frozen=True)
class PackedWeights:
    """Named tensors as bytes. arrays: uint8 [bytes] for each spec; tied tensors share one array."""

    specs: tuple[TensorSpec, ...]
    arrays: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        return sum({id(array): array.nbytes for array in self.arrays}.values())

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The named tensors as views of the arrays. Read-only: the object store's memory is shared."""
        for (name, dtype, shape), array in zip(self.specs, self.arrays, strict=True):
            yield name, _shared_tensor(array).view(getattr(torch, dtype)).view(shape)


@dataclass(frozen=True)
class SentSample:
    """A few elements of a sent tensor. indices: int64 [n] into the tensor flattened row by row; values: float32 [n]."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    indices: np.ndarray
    values: np.ndarray


def pack(tensors: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int) -> Iterator[PackedWeights]:
    """Splits named tensors, in order, into buckets of at most `bucket_bytes`. A larger tensor gets a bucket of its own.

    A bucket may be a view of the tensors, so it must be sent before they change.
    """
    pending: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in tensors:
        is_tied = any(_memory_key(tensor) == _memory_key(other) for _, other in pending)
        added_bytes = 0 if is_tied else tensor.numel() * tensor.element_size()
        if pending and size + added_bytes > bucket_bytes:
            yield _pack_bucket(pending)
            pending, size = [], 0
        pending.append((name, tensor))
        size += added_bytes
    if pending:
        yield _pack_bucket(pending)


def checksum(bucket: PackedWeights) -> int:
    """A CRC-32 over each tensor's name, dtype, shape and a strided sample of its bytes."""
    crc = 0
    for spec, array in zip(bucket.specs, bucket.arrays, strict=True):
        stride = max(len(array) // CHECKED_BYTES, 1) | 1  # odd: a stride of 2 would see only one half of every bfloat16
        crc = zlib.crc32(np.ascontiguousarray(array[::stride]).tobytes(), zlib.crc32(repr(spec).encode(), crc))
    return crc


def sent_samples(bucket: PackedWeights) -> list[SentSample]:
    """A few elements of each tensor, to compare with what the engine holds after loading."""
    return [sample_elements(name, tensor) for name, tensor in bucket.tensors()]


def sample_elements(name: str, tensor: torch.Tensor) -> SentSample:
    """At most `SAMPLED_ELEMENTS` elements of a tensor, evenly spread."""
    indices = torch.linspace(0, tensor.numel() - 1, min(SAMPLED_ELEMENTS, tensor.numel()), dtype=torch.float64).long()
    values = tensor.detach().reshape(-1)[indices.to(tensor.device)].float().cpu()
    return SentSample(name, tuple(tensor.shape), _dtype_name(tensor), indices.numpy(), values.numpy())


def _pack_bucket(tensors: list[tuple[str, torch.Tensor]]) -> PackedWeights:
    arrays: dict[tuple, np.ndarray] = {}
    for _, tensor in tensors:
        if _memory_key(tensor) not in arrays:
            arrays[_memory_key(tensor)] = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    specs = tuple((name, _dtype_name(tensor), tuple(tensor.shape)) for name, tensor in tensors)
    return PackedWeights(specs, tuple(arrays[_memory_key(tensor)] for _, tensor in tensors))


def _memory_key(tensor: torch.Tensor) -> tuple:
    """Equal for two tensors if and only if they are tied: the same memory, dtype, shape and strides."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _shared_tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
