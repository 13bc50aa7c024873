"""Checks that run a model run on its device: a stand-in for flash attention, which has no kernel for a CPU, is never given CPU tensors."""

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from minirl.model.attention import kernel_gap
from minirl.model.loading import load_causal_lm
from minirl.model.output_head import check_head
from minirl.model.student import packing_gap
from tests.pretend_device import DEVICE, Accelerator
from tests.tiny import tiny_model

KERNEL = "device_only"


@pytest.fixture
def calls(monkeypatch) -> list[torch.device]:
    """Registers the kernel for the duration of a test. Returns the device of each of its calls."""
    devices: list[torch.device] = []

    def attend(module, query, *rest, **named):
        devices.append(query.device)
        if query.device.type == "cpu":
            raise RuntimeError("this attention kernel has no CPU version")
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, *rest, **named)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, KERNEL, attend)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, KERNEL, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # the pretended device is known to this thread alone
    return devices


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> str:
    return tiny_model(tmp_path_factory.mktemp("student"), "llama", vocab=128)


def test_a_student_is_checked_where_it_lives(calls, student):
    with Accelerator(watched="/minirl/"):
        model = load_causal_lm(student, torch.float32, attention=KERNEL, device=str(DEVICE))
        assert model.device == DEVICE and not calls
        check_head(model, "student")
        assert kernel_gap(model, KERNEL, 16) < 1e-4
        assert packing_gap(model) < float("inf")
    assert set(calls) == {DEVICE}


def test_on_a_cpu_the_stand_in_has_no_kernel(calls, student):
    model = load_causal_lm(student, torch.float32, attention=KERNEL)
    with pytest.raises(RuntimeError, match="no CPU version"):
        check_head(model, "student")
