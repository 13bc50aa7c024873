"""Which attention kernel a learner uses, and whether it packs sequences: the fastest that computes the student correctly."""

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from actors.config import LearnerConfig
from actors.workers.deepspeed_config import attention_kernels
from minirl.errors import InputError
from minirl.model.attention import KERNEL_TOLERANCE, kernel_gap
from minirl.model.student import packing_gap

# Largest allowed difference between the states of a packed sequence and of the same sequence alone, relative to the largest state.
# Rounding stays below it; attention to another sequence's tokens does not.
PACKING_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


def choose_attention(model: PreTrainedModel, config: LearnerConfig, device: str, longest_sequence: int) -> tuple[str, list[str]]:
    """The fastest kernel that computes the model as the eager kernel does, and a warning about each that does not.

    It compares them on a random sequence of `longest_sequence` tokens and leaves the model with the chosen kernel. Raises InputError if
    the config names a kernel that does not compute the model. Collective.
    """
    warnings: list[str] = []
    for kernel in attention_kernels(config, device, model.config):
        gap = torch.tensor(kernel_gap(model, kernel, longest_sequence), device=device)
        dist.all_reduce(gap, dist.ReduceOp.MAX)  # so that all ranks take the same kernel
        if gap <= KERNEL_TOLERANCE[config.dtype]:
            break
        finding = f"the {kernel} attention of {type(model).__name__} differs from its eager attention ({gap:.2g} of the output)"
        if config.attention != "auto":
            raise InputError(f"learner.attention: {finding}; set learner.attention: auto")
        warnings.append(f"{finding}, so the learner does not use it; set learner.attention: eager to avoid this warning")
    return kernel, warnings


def choose_packing(model: PreTrainedModel, config: LearnerConfig, kernel: str) -> tuple[bool, list[str]]:
    """Whether to pack: if it pays, and if the model computes a packed sequence as it computes the sequence alone.

    The second value is a warning if the second condition fails.
    """
    if config.packing == "off" or (config.packing == "auto" and kernel != "flash_attention_2"):
        return False, []
    gap = packing_gap(model)
    if gap <= PACKING_TOLERANCE[config.dtype]:
        return True, []
    return False, [
        f"{type(model).__name__} with {kernel} attention does not keep packed sequences apart (states {gap:.2g} off), "
        "so the learner pads; set learner.packing: off to avoid this warning"
    ]
