"""Copies of host arrays to the device that the host does not wait for.

A copy from ordinary memory makes the host wait until the device has done everything that was queued before it. A copy from pinned memory
only joins the queue, so the host goes on to queue the next operations.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minirl.types import tensor_from_numpy


def copy_concatenated(arrays: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    """The arrays, one after another along their first axis, as one tensor on the device; uint16 holds the bits of bfloat16."""
    if torch.device(device).type == "cpu":
        return tensor_from_numpy(np.concatenate(arrays))
    shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
    pinned = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, np.result_type(*arrays))).dtype, pin_memory=True)
    np.concatenate(arrays, out=pinned.numpy())
    copied = pinned.to(device, non_blocking=True)
    return copied.view(torch.bfloat16) if copied.dtype == torch.uint16 else copied


def copy_together(arrays: Sequence[np.ndarray], device: torch.device | str) -> list[Tensor]:
    """The arrays as tensors on the device, by one copy. Their common dtype is the widest of theirs."""
    joined = copy_concatenated([array.reshape(-1) for array in arrays], device)
    return [part.view(array.shape) for part, array in zip(joined.split([array.size for array in arrays]), arrays, strict=True)]
