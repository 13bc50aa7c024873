"""Weights on their way from the learner to the rollout engines: flat buckets through host memory, or vLLM's NCCL engine.

Worked example, a bucket of two tensors in bfloat16; offsets are multiples of 64, so that views are aligned:

    entries  (("model.norm.weight", "bfloat16", (576,), 0), ("lm_head.weight", "bfloat16", (49152, 576), 1152))
    data     uint8 [56624256], one block that Ray's object store shares without a copy

The stream names `lm_head.weight` also where it is tied to the embedding: a CPU kernel holds its own packed copy of the head.
"""

import math
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

ALIGNMENT = 64  # bytes
CHECKED_BYTES = 4096  # of every entry, spread evenly over it
SAMPLED_ELEMENTS = 16  # of every entry, compared with what the engine holds after loading

Entry = tuple[str, str, tuple[int, ...], int]


@dataclass(frozen=True)
class PackedWeights:
    """Named tensors in one flat buffer. data: uint8 [bytes]; entries: (name, dtype such as "bfloat16", shape, byte offset)."""

    data: np.ndarray
    entries: tuple[Entry, ...]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The named tensors as views of `data`; to be read, never written (the object store's memory is shared)."""
        for entry in self.entries:
            name, dtype, shape, _ = entry
            yield name, _shared_tensor(self.bytes_of(entry)).view(getattr(torch, dtype)).view(shape)

    def bytes_of(self, entry: Entry) -> np.ndarray:
        """The uint8 view of one entry."""
        _, dtype, shape, offset = entry
        return self.data[offset : offset + math.prod(shape) * getattr(torch, dtype).itemsize]


@dataclass(frozen=True)
class SentSample:
    """A few elements of a sent tensor. indices: int64 [n] into its rows-first flattening; values: float32 [n]."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    indices: np.ndarray
    values: np.ndarray


def pack(tensors: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int) -> Iterator[PackedWeights]:
    """Pack named tensors, in order, into buckets of at most `bucket_bytes`; a larger tensor gets a bucket of its own."""
    pending: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in tensors:
        needed = _aligned(tensor.numel() * tensor.element_size())
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
    for entry in bucket.entries:
        content = bucket.bytes_of(entry)
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
    entries, offset = [], 0
    for name, tensor in tensors:
        entries.append((name, _dtype_name(tensor), tuple(tensor.shape), offset))
        offset += _aligned(tensor.numel() * tensor.element_size())
    bucket = PackedWeights(np.zeros(offset, np.uint8), tuple(entries))
    for entry, (_, tensor) in zip(bucket.entries, tensors, strict=True):
        bucket.bytes_of(entry)[:] = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return bucket


def _shared_tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
