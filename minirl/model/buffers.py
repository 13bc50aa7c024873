"""BufferPool: large CPU buffers that are reused from one forward or backward pass to the next."""

import torch
from torch import Tensor


class BufferPool:
    """Keeps large buffers between passes on a CPU, where fresh memory costs more than the arithmetic done in it.

    On an accelerator the pool keeps nothing, because the allocator there does. A buffer has one borrower at a time; a second borrower of
    the same name gets a fresh buffer, so passes may overlap.
    """

    def __init__(self) -> None:
        self._free: dict[str, Tensor] = {}

    def borrow(self, name: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A flat buffer of at least `size` elements, not initialised."""
        buffer = self._free.pop(name, None)
        if buffer is not None and buffer.numel() >= size and (buffer.dtype, buffer.device) == (dtype, device):
            return buffer
        del buffer  # frees the small buffer before the large one is allocated
        return torch.empty(size, dtype=dtype, device=device)

    def give_back(self, name: str, buffer: Tensor) -> None:
        """Return a buffer to the pool; the caller must not use it afterwards."""
        if buffer.device.type == "cpu":
            self._free[name] = buffer
