"""Arrays that travel in one copy keep their values, shapes and bits."""

import numpy as np
import pytest
import torch

from minirl.model.device_copy import copy_concatenated, copy_together
from minirl.types import numpy_from_tensor
from tests.pretend_device import DEVICE, Accelerator


@pytest.fixture(params=["cpu", "device"])
def device(request):
    if request.param == "cpu":
        yield "cpu"
        return
    with Accelerator() as accelerator:
        yield DEVICE
    assert accelerator.copies_to_device == 1 and not accelerator.waits


def values(tensor: torch.Tensor) -> torch.Tensor:
    return getattr(tensor, "held", tensor)


def test_arrays_of_any_shape_come_back_from_one_copy(device):
    arrays = [np.arange(6).reshape(2, 3), np.empty((0, 4), np.int64), np.array([7, 8])]
    for tensor, array in zip(copy_together(arrays, device), arrays, strict=True):
        assert tensor.dtype == torch.int64 and tensor.device == torch.device(device)
        np.testing.assert_array_equal(values(tensor).numpy(), array)


def test_the_common_dtype_is_the_widest(device):
    narrow, wide = copy_together([np.array([0.1], np.float32), np.array([0.1])], device)
    assert narrow.dtype == wide.dtype == torch.float64
    assert values(narrow).item() == np.float32(0.1) and values(wide).item() == 0.1


def test_bfloat16_keeps_its_bits(device):
    states = torch.randn(5, 3).bfloat16()
    copied = copy_concatenated([numpy_from_tensor(states[:2]), numpy_from_tensor(states[2:])], device)
    assert copied.dtype == torch.bfloat16 and torch.equal(values(copied), states)
