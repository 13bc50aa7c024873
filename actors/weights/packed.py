"""Weights on their way from the learner to the rollout engines: buckets through host memory, or vLLM's NCCL engine.

Worked example, a bucket of two tensors in bfloat16, the second tied to one that it holds already:

    entries  (("model.embed_tokens.weight", "bfloat16", (49152, 576)), ("lm_head.weight", "bfloat16", (49152, 576)))
    arrays   uint8 [56623104], twice the same: a view of the learner's memory, that Ray's object store copies once and shares from there

The stream names `lm_head.weight` also where it is tied to the embedding: a CPU kernel holds its own packed copy of the head.
"""

import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

CHECKED_BYTES = 4096  # of every entry, spread evenly over it
SAMPLED_ELEMENTS = 16  # of every entry, compared with what the engine holds after loading

Entry = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class PackedWeights:
    """Named tensors. entries: (name, dtype such as "bfloat16", shape); arrays: uint8 [bytes] of each, one array for tied ones."""

    entries: tuple[Entry, ...]
    arrays: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        return sum({id(array): array.nbytes for array in self.arrays}.values())

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The named tensors as views of the arrays; to be read, never written (the object store's memory is shared)."""
        for (name, dtype, shape), array in zip(self.entries, self.arrays, strict=True):
            yield name, _shared_tensor(array).view(getattr(torch, dtype)).view(shape)


@dataclass(frozen=True)
class SentSample:
    """A few elements of a sent tensor. indices: int64 [n] into its rows-first flattening; values: float32 [n]."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    indices: np.ndarray
    values: np.ndarray


def pack(tensors: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int) -> Iterator[PackedWeights]:
    """Named tensors, in order, in buckets of at most `bucket_bytes`; a larger tensor gets a bucket of its own.

    A bucket may be a view of the tensors: it has to be sent before they change.
    """
    pending: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in tensors:
        needed = 0 if any(_place(tensor) == _place(other) for _, other in pending) else tensor.numel() * tensor.element_size()
        if pending and size + needed > bucket_bytes:
            yield _bucket(pending)
            pending, size = [], 0
        pending.append((name, tensor))
        size += needed
    if pending:
        yield _bucket(pending)


def checksum(bucket: PackedWeights) -> int:
    """A CRC-32 over every entry's name, dtype, shape and a strided sample of its bytes."""
    crc = 0
    for entry, content in zip(bucket.entries, bucket.arrays, strict=True):
        stride = max(len(content) // CHECKED_BYTES, 1) | 1  # odd: a stride of 2 would see only one half of every bfloat16
        crc = zlib.crc32(np.ascontiguousarray(content[::stride]).tobytes(), zlib.crc32(repr(entry).encode(), crc))
    return crc


def sent_samples(bucket: PackedWeights) -> list[SentSample]:
    """A few elements of every entry, evenly spread, to compare with what the engine holds once it has loaded them."""
    return [sample_of(name, tensor) for name, tensor in bucket.tensors()]


def sample_of(name: str, tensor: torch.Tensor) -> SentSample:
    indices = torch.linspace(0, tensor.numel() - 1, min(SAMPLED_ELEMENTS, tensor.numel()), dtype=torch.float64).long()
    values = tensor.detach().reshape(-1)[indices.to(tensor.device)].float().cpu()
    return SentSample(name, tuple(tensor.shape), _dtype_name(tensor), indices.numpy(), values.numpy())


def _bucket(tensors: list[tuple[str, torch.Tensor]]) -> PackedWeights:
    arrays: dict[tuple, np.ndarray] = {}
    for _, tensor in tensors:
        if _place(tensor) not in arrays:
            arrays[_place(tensor)] = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    entries = tuple((name, _dtype_name(tensor), tuple(tensor.shape)) for name, tensor in tensors)
    return PackedWeights(entries, tuple(arrays[_place(tensor)] for _, tensor in tensors))


def _place(tensor: torch.Tensor) -> tuple:
    """The same for tied tensors alone."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _shared_tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
