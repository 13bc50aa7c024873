"""The mixture model's own steps, with small functions in place of the two networks."""

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.slow  # imports vLLM

STUDENT_WIDTH, TEACHER_WIDTH = 3, 5


class Network(nn.Module):
    """Writes its output, `value` everywhere, into memory that it does not own, as a captured graph does."""

    def __init__(self, memory: torch.Tensor, width: int, value: float):
        super().__init__()
        self.memory, self.width, self.value = memory, width, value

    def forward(self, input_ids, positions, intermediate_tensors, inputs_embeds):
        return self.memory[: len(input_ids) * self.width].fill_(self.value).view(len(input_ids), self.width)


def mixture(share: float) -> nn.Module:
    """A mixture of two networks that write to the same memory."""
    from actors.engine.mixture_model import MixtureForCausalLM

    model, memory = MixtureForCausalLM.__new__(MixtureForCausalLM), torch.zeros(64)
    nn.Module.__init__(model)
    model.student, model.student_width = Network(memory, STUDENT_WIDTH, 2.0), STUDENT_WIDTH
    model.teacher, model.teacher_width = Network(memory, TEACHER_WIDTH, 7.0), TEACHER_WIDTH
    model.set_sampling(share, None)
    return model


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_teacher_that_overwrites_the_students_memory_leaves_the_joint_states_right(share):
    tokens = torch.arange(4)
    states = mixture(share)(tokens, tokens)
    student, teacher = states.split([STUDENT_WIDTH, TEACHER_WIDTH], dim=-1)
    assert student.unique().tolist() == [2.0 if share < 1 else 0.0]
    assert teacher.unique().tolist() == [7.0 if share > 0 else 0.0]
