"""The learner's whole computation on the pretended device: values, waits of the host, copies, and operations by the response's length."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minirl.config.objective import PRESETS, DivergenceConfig, ObjectiveConfig, SoftTargetsConfig
from minirl.config.student import LoraConfig
from minirl.model.lora import attach_adapters, trainable_parameters
from minirl.model.output_head import OutputHead
from minirl.model.student import StudentModule
from minirl.model.teacher_ensemble import TeacherEnsemble
from minirl.objective.divergence import DIVERGENCES
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.training.update import LossDivisors, diagnose, frozen_advantages, on_policy_loss, soft_update_loss, supervised_loss
from minirl.types import EnsembleScores, Rollout, TeacherScores, TokenSequence, numpy_from_tensor
from tests.pretend_device import DEVICE, Accelerator, Pretended, moved_to_device

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


def student(*, there: bool, packed: bool = False, chunk: int = 2048, kernel: str = "sdpa", lora: bool = False, teachers: int = 1):
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 2048, "tie_word_embeddings": True, "attn_implementation": kernel,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**shape)).train()
    if lora:
        attach_adapters(model, LoraConfig(rank=2), seed=0, dropout=False)
    weights = [torch.randn(VOCABULARY, width) for width in TEACHER_WIDTHS[:teachers]]
    heads = tuple(OutputHead(Pretended(weight) if there else weight, None, 1.0, None, VOCABULARY) for weight in weights)
    teacher = heads[0] if teachers == 1 else TeacherEnsemble(heads, (1.0, 3.0))
    module = StudentModule(model, vocabulary=VOCABULARY, chunk_tokens=chunk, teacher_head=teacher)
    module.packed = packed
    return moved_to_device(module) if there else module


def on_policy(config: ObjectiveConfig, items: list[OnPolicyItem]):
    divisors = replace(DIVISORS, whitening=(0.1, 2.0)) if config.whiten else DIVISORS
    return lambda module, device: on_policy_loss(module, items, config, divisors, device=device, temperature=1.3, teacher_share=0.2)


def supervised(items: list[SupervisedItem], **switches):
    return lambda module, device: supervised_loss(module, items, DIVISORS, device=device, **switches)


def soft(items, kind: str, **switches):
    config = SoftTargetsConfig(divergence=DivergenceConfig(kind=kind), **switches)
    return lambda module, device: soft_update_loss(module, items, config, 68.0, device=device, temperature=1.3)


def on_device(compute, module: StudentModule) -> tuple[Accelerator, torch.Tensor, dict[str, torch.Tensor]]:
    """The device after forward, loss and backward; the loss; the sums that are logged."""
    with Accelerator() as device:
        loss, sums = compute(module, DEVICE)
        loss.backward()
    return device, loss.held, {name: getattr(value, "held", value) for name, value in sums.items()}


CASES = {
    **{name: (on_policy(config, rollouts(frozen=config.credit == "frozen")), {}, 3) for name, config in OBJECTIVES.items()},
    **{f"soft targets, {kind}": (soft(texts(), kind), {}, 3) for kind in DIVERGENCES},
    "soft targets of rollouts, with hard ones": (soft(rollouts(), "jsd", hard_weight=0.5), {}, 3),
    "sft": (supervised(texts(scored=False)), {}, 1),
    "pretrain": (supervised(texts(), coefficient=0.5, kd_share=0.5), {}, 3),
    "packed": (on_policy(OBJECTIVES["paper"], rollouts()), {"packed": True}, 3),
    "packed, one sequence": (on_policy(OBJECTIVES["paper"], rollouts((9,))), {"packed": True}, 3),
    "packed sft": (supervised(texts(scored=False)), {"packed": True}, 1),
    "chunked head": (on_policy(OBJECTIVES["paper"], rollouts()), {"chunk": 20}, 3),
    "chunked head, jsd": (soft(texts(), "jsd"), {"chunk": 20}, 3),
    "lora": (on_policy(OBJECTIVES["paper"], rollouts()), {"lora": True}, 3),
    "bfloat16 states": (on_policy(OBJECTIVES["paper"], rollouts(bits=True)), {}, 3),
    "two teachers": (on_policy(OBJECTIVES["paper"], rollouts(scoring=BOTH)), {"teachers": 2, "chunk": 20}, 5),
    "teachers by record": (on_policy(OBJECTIVES["lmops"], rollouts(scoring=BY_RECORD, frozen=True)), {"teachers": 2, "chunk": 20}, 5),
    "two teachers, soft targets": (soft(texts(scoring=BY_RECORD), "skew_reverse_kl"), {"teachers": 2, "packed": True}, 5),
    "no items": (on_policy(OBJECTIVES["paper"], []), {}, 1),
}
"""name: the computation, the module's switches, and the copies to the device: integers, floats and teacher states, if there are such;
several teachers have a copy of states each, and one of their rows."""


@pytest.mark.parametrize(
    "switch", [name for name, field in ObjectiveConfig.model_fields.items() if get_origin(field.annotation) is Literal]
)
def test_every_choice_of_the_objective_is_among_the_cases(switch):
    assert {getattr(config, switch) for config in OBJECTIVES.values()} == set(get_args(ObjectiveConfig.model_fields[switch].annotation))


@pytest.mark.parametrize("name", CASES)
def test_a_micro_batch_has_the_values_of_the_cpu_and_makes_the_host_wait_for_nothing(name):
    compute, switches, copies = CASES[name]
    module, plain = student(there=True, **switches), student(there=False, **switches)
    device, loss, sums = on_device(compute, module)
    assert not device.waits and not device.nondeterministic
    assert device.copies_to_device == copies
    expected, expected_sums = compute(plain, "cpu")
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-6, equal_nan=True)
    for there, here in zip(trainable_parameters(module), trainable_parameters(plain), strict=True):
        torch.testing.assert_close(there.grad.held, here.grad, rtol=1e-6, atol=1e-6)


# Results are fetched at the end, by one copy


def fetches(device: Accelerator) -> list[tuple[str, str, str, int]]:
    return [(reason, place.file, place.function, count) for (reason, place), count in device.waits.items()]


@pytest.mark.parametrize("scoring", [None, BOTH, BY_RECORD])
def test_frozen_advantages_are_fetched_once(scoring):
    switches, items = {"teachers": 2 if scoring else 1}, rollouts(scoring=scoring)
    with Accelerator() as device:
        rows, _ = frozen_advantages(student(there=True, **switches), items, OBJECTIVES["lmops"], device=DEVICE, temperature=1.0)
    assert fetches(device) == [("a copy from the device", "training/update.py", "frozen_advantages", 1)]
    assert not device.nondeterministic
    expected, _ = frozen_advantages(student(there=False, **switches), items, OBJECTIVES["lmops"], device="cpu", temperature=1.0)
    for row, expected_row in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row, expected_row, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scoring", [None, BOTH, BY_RECORD])
def test_diagnostics_are_fetched_once(scoring):
    switches, items = {"teachers": 2 if scoring else 1, "chunk": 20}, texts(scoring)
    with torch.no_grad(), Accelerator() as device:
        rows, _ = diagnose(student(there=True, **switches), items, DEVICE, 5)
    assert fetches(device) == [("a copy from the device", "model/token_diagnostics.py", "split", 1)]
    with torch.no_grad():
        expected, _ = diagnose(student(there=False, **switches), items, "cpu", 5)
    for row, expected_row in zip(rows, expected, strict=True):
        for field, values in vars(expected_row).items():
            np.testing.assert_allclose(getattr(row, field), values, rtol=1e-5, atol=1e-6)


# Operations by the response's length


def operations(config: ObjectiveConfig, length: int) -> int:
    items = rollouts((length, length), frozen=config.credit == "frozen")
    return sum(on_device(on_policy(config, items), student(there=True))[0].operations.values())


@pytest.mark.parametrize("name, by_doubling", [("paper", 4), ("lmops", 0), ("gkd", 4), ("opd", 0), ("exact", 6), ("frozen, white", 0)])
def test_operations_grow_by_a_few_with_each_doubling_of_the_response(name, by_doubling):
    """A step of the scan for returns has four, one of the scan for weights has two; from 64 to 1,024 tokens there are four steps more."""
    few, many = (operations(OBJECTIVES[name], length) for length in (64, 1024))
    assert many - few == 4 * by_doubling


# Planted faults, each of which the tests above would report


def test_a_wait_inside_the_loss_is_seen(monkeypatch):
    monkeypatch.setattr("minirl.training.update.on_policy_losses", lambda config, **grids: grids["mask"].sum().item())
    with Accelerator() as device, pytest.raises(AttributeError):
        on_policy(OBJECTIVES["paper"], rollouts())(student(there=True), DEVICE)
    assert [reason for reason, _ in device.waits] == ["a value read by Python"]


def test_the_question_of_transformers_about_packing_is_seen_where_it_is_asked(monkeypatch):
    monkeypatch.setattr("minirl.model.student.known_sequences", lambda ids: nullcontext())
    device = on_device(*[CASES["paper"][0]], student(there=True))[0]
    assert [(place.file, place.function) for _, place in device.waits] == [("model/student.py", "hidden_states")]
