"""Memory that outlives a pass."""

import torch
from torch import Tensor


class BufferPool:
    """Big buffers that outlive a pass on a CPU, where fresh memory costs more than the arithmetic done in it; an accelerator's
    allocator keeps them itself. A buffer is lent to one asker at a time, another gets a fresh one, so that passes may overlap.
    """

    def __init__(self) -> None:
        self._free: dict[str, Tensor] = {}

    def borrow(self, name: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """At least `size` elements, flat, not initialised."""
        buffer = self._free.pop(name, None)
        if buffer is not None and buffer.numel() >= size and (buffer.dtype, buffer.device) == (dtype, device):
            return buffer
        del buffer  # lets go of the small one before there is a large one
        return torch.empty(size, dtype=dtype, device=device)

    def give_back(self, name: str, buffer: Tensor) -> None:
        """Give back what `take` lent; nobody may look at it any more."""
        if buffer.device.type == "cpu":
            self._free[name] = buffer
