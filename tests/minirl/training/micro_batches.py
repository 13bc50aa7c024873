"""Every kind of micro-batch that the learner computes, and a small student that computes it, for tests on a device."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minirl.config.objective import PRESETS, DivergenceConfig, ObjectiveConfig, SoftTargetsConfig
from minirl.config.student import LoraConfig
from minirl.model.lora import attach_adapters
from minirl.model.output_head import OutputHead
from minirl.model.student import StudentModule
from minirl.model.teacher_ensemble import TeacherEnsemble
from minirl.objective.divergence import DIVERGENCES
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.training.update import LossDivisors, Sums, on_policy_loss, soft_update_loss, supervised_loss
from minirl.types import EnsembleScores, Rollout, TeacherScores, TokenSequence, numpy_from_tensor

VOCABULARY, WIDTH, TEACHER_WIDTHS, PROMPT = 64, 32, (24, 16), 5
LENGTHS = (40, 25, 3)  # of the responses
BOTH, BY_RECORD = ((0, 1),) * 3, ((0,), (1,), (0,))  # the teachers that score each sequence
DIVISORS = LossDivisors(on_policy=68.0, supervised=68.0)
PLAIN = {"length_normalization": False, "ratio_clip": None}
OBJECTIVES = {
    **{name: ObjectiveConfig(preset=name) for name in PRESETS},
    "exact": ObjectiveConfig(importance="exact", **PLAIN),
    "discounted rewards to go": ObjectiveConfig(returns="reward_to_go", discount=0.9, reward_scale=0.5, reward_clip=1.0),
    "ppo clip, by response, no normalisation": ObjectiveConfig(clip_form="ppo", reduction="response", length_normalization=False),
    "frozen": ObjectiveConfig(credit="frozen"),
    "frozen, white": ObjectiveConfig(credit="frozen", whiten=True),
    "truncated dropped": ObjectiveConfig(truncated="drop"),
    "no single step": ObjectiveConfig(single_step_coefficient=0.0, single_step_weight="none"),
}


def scores_of(draw: np.random.Generator, length: int, scoring: tuple[int, ...] | None, bits: bool) -> TeacherScores | EnsembleScores:
    """Scores of random values; every second one was not sent. scoring: the teachers of an ensemble; None: the only teacher."""

    def member(k: int) -> TeacherScores:
        logprobs, normalizers = draw.normal(size=(2, length)).astype(np.float32)
        logprobs[1::2] = normalizers[1::2] = np.nan
        hidden = torch.from_numpy(draw.normal(size=(length, TEACHER_WIDTHS[k])).astype(np.float32))
        return TeacherScores(logprobs, normalizers, numpy_from_tensor(hidden.bfloat16() if bits else hidden))

    if scoring is None:
        return member(0)
    return EnsembleScores(tuple(member(k) if k in scoring else None for k in range(len(TEACHER_WIDTHS))))


def rollouts(lengths=LENGTHS, scoring=None, *, bits: bool = False, frozen: bool = False) -> list[OnPolicyItem]:
    draw, items = np.random.default_rng(0), []
    for i, n in enumerate(lengths):
        tokens, behavior = draw.integers(3, VOCABULARY, PROMPT + n), draw.normal(-4, 0.3, n).astype(np.float32)
        rollout = Rollout(tokens[:PROMPT], tokens[PROMPT:], behavior, i == 1, 0, 0, 0)
        advantages = draw.normal(size=n).astype(np.float32) if frozen else None
        items.append(OnPolicyItem(rollout, scores_of(draw, n, scoring and scoring[i], bits), advantages))
    return items


def texts(scoring=None, *, scored: bool = True) -> list[SupervisedItem]:
    """Sequences whose targets have gaps."""
    items = []
    for item in rollouts(scoring=scoring):
        targets = item.sequence.is_target.copy()
        targets[[0, PROMPT]] = False, True
        items.append(SupervisedItem(TokenSequence(item.sequence.tokens, targets), item.scores if scored else None))
    return items


def unmoved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def student(
    put: Callable[[torch.Tensor], torch.Tensor] = unmoved,
    *,
    packed: bool = False,
    chunk: int = 2048,
    kernel: str = "sdpa",
    lora: bool = False,
    teachers: int = 1,
) -> StudentModule:
    """The same student each time, on the host. put: moves the heads of the teachers, which are outside of the module, to a device."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 2048, "tie_word_embeddings": True, "attn_implementation": kernel,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**shape)).train()
    if lora:
        attach_adapters(model, LoraConfig(rank=2), seed=0, dropout=False)
    heads = tuple(OutputHead(put(torch.randn(VOCABULARY, width)), None, 1.0, None, VOCABULARY) for width in TEACHER_WIDTHS[:teachers])
    teacher = heads[0] if teachers == 1 else TeacherEnsemble(heads, (1.0, 3.0))
    module = StudentModule(model, vocabulary=VOCABULARY, chunk_tokens=chunk, teacher_head=teacher)
    module.packed = packed
    return module


Compute = Callable[[StudentModule, torch.device | str], tuple[torch.Tensor, Sums]]


def on_policy(config: ObjectiveConfig, items: list[OnPolicyItem]) -> Compute:
    divisors = replace(DIVISORS, whitening=(0.1, 2.0)) if config.whiten else DIVISORS
    return lambda module, device: on_policy_loss(module, items, config, divisors, device=device, temperature=1.3, teacher_share=0.2)


def supervised(items: list[SupervisedItem], **switches) -> Compute:
    return lambda module, device: supervised_loss(module, items, DIVISORS, device=device, **switches)


def soft(items: list[OnPolicyItem] | list[SupervisedItem], kind: str, **switches) -> Compute:
    config = SoftTargetsConfig(divergence=DivergenceConfig(kind=kind), **switches)
    return lambda module, device: soft_update_loss(module, items, config, 68.0, device=device, temperature=1.3)


class Case(NamedTuple):
    """A computation, its copies to the device, and switches of the module.

    Integers, floats and the teacher's states, if there are such, have a copy each; several teachers one each, and one of their rows.
    """

    compute: Compute
    copies: int
    switches: dict[str, Any] = {}


CASES = {
    **{name: Case(on_policy(config, rollouts(frozen=config.credit == "frozen")), 3) for name, config in OBJECTIVES.items()},
    **{f"soft targets, {kind}": Case(soft(texts(), kind), 3) for kind in DIVERGENCES},
    "soft targets of rollouts, with hard ones": Case(soft(rollouts(), "jsd", hard_weight=0.5), 3),
    "sft": Case(supervised(texts(scored=False)), 1),
    "pretrain": Case(supervised(texts(), coefficient=0.5, kd_share=0.5), 3),
    "packed": Case(on_policy(OBJECTIVES["paper"], rollouts()), 3, {"packed": True}),
    "packed, one sequence": Case(on_policy(OBJECTIVES["paper"], rollouts((9,))), 3, {"packed": True}),
    "packed sft": Case(supervised(texts(scored=False)), 1, {"packed": True}),
    "chunked head": Case(on_policy(OBJECTIVES["paper"], rollouts()), 3, {"chunk": 20}),
    "chunked head, jsd": Case(soft(texts(), "jsd"), 3, {"chunk": 20}),
    "lora": Case(on_policy(OBJECTIVES["paper"], rollouts()), 3, {"lora": True}),
    "bfloat16 states": Case(on_policy(OBJECTIVES["paper"], rollouts(bits=True)), 3),
    "two teachers": Case(on_policy(OBJECTIVES["paper"], rollouts(scoring=BOTH)), 5, {"teachers": 2, "chunk": 20}),
    "teachers by record": Case(on_policy(OBJECTIVES["lmops"], rollouts(scoring=BY_RECORD, frozen=True)), 5, {"teachers": 2, "chunk": 20}),
    "two teachers, soft targets": Case(soft(texts(scoring=BY_RECORD), "skew_reverse_kl"), 5, {"teachers": 2, "packed": True}),
    "no items": Case(on_policy(OBJECTIVES["paper"], []), 1),
}
