"""The learner checks a student on its device: an attention kernel without a CPU version never sees a CPU tensor."""

import pytest
import torch
import torch.distributed as dist

from actors.config import LearnerConfig, LearnerSetup
from tests.minirl.model.test_checks_on_device import KERNEL, calls  # noqa: F401 (a fixture)
from tests.pretend_device import DEVICE, Accelerator
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture
def process_group(tmp_path):
    """A process group of this process alone: that of an engine which another test started here, or a new one."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_no_check_runs_the_student_before_it_is_on_the_device(process_group, calls, monkeypatch, tmp_path):  # noqa: F811
    from actors.workers import attention_choice, learner

    monkeypatch.setattr(attention_choice, "attention_kernels", lambda *_: [KERNEL])
    load = learner.load_causal_lm
    # As transformers would choose flash attention where it is installed.
    monkeypatch.setattr(learner, "load_causal_lm", lambda *arguments, **named: load(*arguments, **named, attention=KERNEL))
    student = tiny_model(tmp_path / "student", "llama", vocab=128)
    setup = LearnerSetup(
        model=student, teacher=None, vocabulary=128, config=LearnerConfig(dtype="float32", packing="on"), device=str(DEVICE), threads=1,
        seed=0, longest_sequence=16,
    )  # fmt: skip
    with Accelerator(watched="/minirl/"):
        built = learner.Learner(setup)
    assert built.attention == KERNEL
    assert {parameter.device for parameter in built.module.parameters()} == {DEVICE}
    assert set(calls) == {torch.device(DEVICE)}
