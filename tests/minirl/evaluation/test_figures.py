"""All figures of a model on a set, by hand: pooled means weigh tokens, not responses or seeds."""

import numpy as np
import pytest

from minirl.evaluation.figures import figures_of, rouge_scores
from minirl.evaluation.report import row_of
from minirl.evaluation.samples import EvaluatedSamples
from minirl.model.token_diagnostics import SequenceDiagnostics
from minirl.types import Rollout

REFERENCES = [("the cat sat",), ("a dog",)]


def rollout(tokens: list[int], truncated: bool = False) -> Rollout:
    return Rollout(np.array([7]), np.array(tokens), np.zeros(len(tokens), np.float32), truncated, 1, 0, 0)


def diagnostics(reverse_kl: list[float], **fields) -> SequenceDiagnostics:
    """Other fields default to zeros."""
    n = len(reverse_kl)
    values = {name: np.array(fields.get(name, np.zeros(n)), np.float32) for name in SequenceDiagnostics.__dataclass_fields__}
    return SequenceDiagnostics(
        **values | {"reverse_kl": np.array(reverse_kl, np.float32), "correct": np.array(fields.get("correct", [False] * n))}
    )


@pytest.fixture
def samples():
    on_model_samples = [
        [diagnostics([0.5, 0.5], forward_kl=[1, 3]), diagnostics([2.0, 0, 0, 0], forward_kl=[1, 1, 1, 1])],
        [diagnostics([3.0, 0.0], forward_kl=[1, 3]), diagnostics([6.0, 0.0], overlap=[1, 0.5])],
    ]
    on_teacher_samples = [[diagnostics([0, 0], forward_kl=[1, 1]), diagnostics([0, 0], forward_kl=[1, 0])]]
    on_gold = [
        diagnostics(
            [1, 1, 1], forward_kl=[4, 0, 0], student_logprobs=[-1, -2, -3],
            confidence=[0.95, 0.95, 0.55], correct=[True, False, True],
        ),
        diagnostics([1], forward_kl=[1], student_logprobs=[-4], overlap=[1.0]),
    ]  # fmt: skip
    return EvaluatedSamples(
        texts=[["the cat sat", "a dog"], ["the cat", "a dog"]],
        rollouts=[[rollout([5, 1]), rollout([9, 9, 9, 9], True)], [rollout([5, 6]), rollout([5, 1])]],
        on_model_samples=on_model_samples,
        on_gold=on_gold,
        on_teacher_samples=on_teacher_samples,
    )


@pytest.fixture
def figures(samples):
    return figures_of(samples, REFERENCES, rouge_scores(samples, REFERENCES), top_k=2)


def test_rouge_l_and_its_length_classes(figures):
    """Rouge-L of "the cat" against "the cat sat": precision 1, recall 2/3, F 0.8; every other text equals its reference."""
    assert figures["rouge_l"]["mean"] == pytest.approx(100 * 3.8 / 4)
    assert figures["rouge_l"]["by_seed"] == pytest.approx([100, 90])
    assert figures["rouge_l"]["seed_standard_error"] == pytest.approx(5.0)
    short, middle, long = figures["rouge_l_by_gold_words"]
    assert (short["low"], short["high"], short["prompts"], short["rouge_l"]["mean"]) == (0, 5, 2, pytest.approx(95))
    assert (long["low"], long["high"], long["prompts"], middle["rouge_l"], long["rouge_l"]) == (11, None, 0, None, None)


def test_classes_of_gold_words_have_no_gap(samples):
    references = [(" ".join(["w"] * words),) for words in (5, 6)]
    classes = figures_of(samples, references, rouge_scores(samples, references), top_k=2)["rouge_l_by_gold_words"]
    assert [row["prompts"] for row in classes] == [1, 1, 0]


def test_divergences(figures):
    assert figures["reverse_kl"]["mean"] == pytest.approx(12 / 10)
    assert figures["reverse_kl"]["seed_standard_error"] == pytest.approx(abs(3 / 6 - 9 / 4) / 2)
    assert figures["reverse_kl_per_response"]["mean"] == pytest.approx(12 / 4)
    assert figures["forward_kl_gold"] == pytest.approx(5 / 4) and figures["reverse_kl_gold"] == pytest.approx(1)
    by_position = figures["kl_by_position"]
    assert by_position["alive"] == [4, 4, 1, 1]
    assert by_position["reverse"] == pytest.approx([(0.5 + 2 + 3 + 6) / 4, 0.5 / 4, 0, 0])
    assert by_position["forward"] == pytest.approx([3 / 4, 7 / 4, 1, 1])


def test_exposure_bias_uses_forward_kl_on_the_models_and_the_teachers_samples(figures):
    """f_student = 3/4, 7/4, 1/4, 1/4 and f_teacher = 1, 1/2: R(2) = 2.5, l eps = 1.5. At the end 3 and 1.5."""
    zero = figures["exposure_bias"]["zero"]["percent"]
    assert zero == pytest.approx([-25.0, 100 * 1 / 1.5, 100 * 1.25 / 1.5, 100.0])
    assert set(figures["exposure_bias"]) == {"zero", "drop", "reference"}


def test_gold_tokens(figures):
    """Bins: 0.95 and 0.95 (one right), 0.55 (right), 0 (wrong). ECE = 2/4 * 0.45 + 1/4 * 0.45."""
    assert figures["lm_loss_gold"] == pytest.approx(10 / 4)
    assert figures["calibration"]["ece"] == pytest.approx(0.5 * 0.45 + 0.25 * 0.45)
    assert figures["calibration"]["accuracy"] == pytest.approx(0.5)


def test_lengths_repetition_and_diversity(figures):
    assert figures["mean_response_tokens"] == pytest.approx(10 / 4) and figures["truncated"] == pytest.approx(1 / 4)
    assert figures["repetition"] == 0.0  # one 4-gram in all
    assert figures["distinct"]["words"]["1"] == pytest.approx(5 / 9)  # the cat sat a dog
    assert figures["distinct"]["tokens"]["1"] == pytest.approx(4 / 10)
    assert figures["distinct"]["tokens"]["4"] == 1.0
    assert figures["top_k_overlap"] == {"k": 2, "samples": pytest.approx(1.5 / 10), "gold": pytest.approx(1 / 4)}


def test_the_row_of_the_closing_table(figures):
    row = row_of(figures)
    assert (row["rouge_l"], row["reverse_kl"], row["reverse_kl_per_response"]) == pytest.approx((95, 1.2, 3))
    assert (row["prompts"], row["seeds"], row["distinct_4"]) == (2, 2, 0.0)


def test_only_figures_that_were_not_measured_are_none(samples):
    blocked = EvaluatedSamples(samples.texts, samples.rollouts, None, [])
    figures = figures_of(blocked, REFERENCES, rouge_scores(blocked, REFERENCES), top_k=2)
    missing = {name for name, value in figures.items() if value is None}
    assert missing == {
        "reverse_kl", "reverse_kl_per_response", "kl_by_position", "forward_kl_gold", "reverse_kl_gold", "lm_loss_gold", "calibration",
        "exposure_bias", "teacher_agreement",
    }  # fmt: skip
    assert row_of(figures)["reverse_kl"] is None and row_of(figures)["rouge_l"] == pytest.approx(95)


def test_one_seed_has_no_standard_error_over_seeds(samples):
    one_seed = EvaluatedSamples(samples.texts[:1], samples.rollouts[:1], samples.on_model_samples[:1], samples.on_gold)
    row = row_of(figures_of(one_seed, REFERENCES, rouge_scores(one_seed, REFERENCES), top_k=2))
    assert row["rouge_l_standard_error"] is None and row["reverse_kl_standard_error"] is None


def test_arrays_hold_every_response_and_token(samples):
    arrays = samples.arrays(rouge_scores(samples, REFERENCES))
    assert arrays["rouge_l"].shape == arrays["lengths"].shape == arrays["truncated"].shape == (2, 2)
    assert arrays["tokens"].tolist() == [5, 1, 9, 9, 9, 9, 5, 6, 5, 1]
    assert arrays["own/reverse_kl"].tolist() == [0.5, 0.5, 2, 0, 0, 0, 3, 0, 6, 0]
    assert arrays["own/lengths"].tolist() == arrays["lengths"].tolist() == [[2, 4], [2, 2]]
    assert arrays["gold/lengths"].tolist() == [[3, 1]] and arrays["on_teacher/forward_kl"].tolist() == [1, 1, 1, 0]
    assert "own/reverse_kl" not in EvaluatedSamples(samples.texts, samples.rollouts, None, []).arrays(np.zeros((2, 2)))
