"""All figures of a model on a set, by hand: pooled means weigh positions, not responses or seeds."""

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


def diagnosed(reverse_kl: list[float], **fields) -> SequenceDiagnostics:
    """The other fields as given, or zeros."""
    n = len(reverse_kl)
    values = {name: np.array(fields.get(name, np.zeros(n)), np.float32) for name in SequenceDiagnostics.__dataclass_fields__}
    return SequenceDiagnostics(
        **values | {"reverse_kl": np.array(reverse_kl, np.float32), "correct": np.array(fields.get("correct", [False] * n))}
    )


@pytest.fixture
def judged():
    own = [
        [diagnosed([0.5, 0.5], forward_kl=[1, 3]), diagnosed([2.0, 0, 0, 0], forward_kl=[1, 1, 1, 1])],
        [diagnosed([3.0, 0.0], forward_kl=[1, 3]), diagnosed([6.0, 0.0], overlap=[1, 0.5])],
    ]
    on_teacher = [[diagnosed([0, 0], forward_kl=[1, 1]), diagnosed([0, 0], forward_kl=[1, 0])]]
    gold = [
        diagnosed(
            [1, 1, 1], forward_kl=[4, 0, 0], student_logprobs=[-1, -2, -3],
            confidence=[0.95, 0.95, 0.55], correct=[True, False, True],
        ),
        diagnosed([1], forward_kl=[1], student_logprobs=[-4], overlap=[1.0]),
    ]  # fmt: skip
    return EvaluatedSamples(
        texts=[["the cat sat", "a dog"], ["the cat", "a dog"]],
        rollouts=[[rollout([5, 1]), rollout([9, 9, 9, 9], True)], [rollout([5, 6]), rollout([5, 1])]],
        own=own,
        gold=gold,
        on_teacher=on_teacher,
    )


@pytest.fixture
def measures(judged):
    return figures_of(judged, REFERENCES, rouge_scores(judged, REFERENCES), top_k=2)


def test_rouge_l_and_its_classes(measures):
    """Rouge-L of "the cat" against "the cat sat": precision 1, recall 2/3, F 0.8; every other text is its reference."""
    assert measures["rouge_l"]["mean"] == pytest.approx(100 * 3.8 / 4)
    assert measures["rouge_l"]["by_seed"] == pytest.approx([100, 90])
    assert measures["rouge_l"]["seed_standard_error"] == pytest.approx(5.0)
    short, middle, long = measures["rouge_l_by_gold_words"]
    assert (short["low"], short["high"], short["prompts"], short["rouge_l"]["mean"]) == (0, 5, 2, pytest.approx(95))
    assert (long["low"], long["high"], long["prompts"], middle["rouge_l"], long["rouge_l"]) == (11, None, 0, None, None)


def test_classes_of_gold_words_meet_without_a_gap(judged):
    references = [(" ".join(["w"] * words),) for words in (5, 6)]
    found = figures_of(judged, references, rouge_scores(judged, references), top_k=2)["rouge_l_by_gold_words"]
    assert [row["prompts"] for row in found] == [1, 1, 0]


def test_divergences(measures):
    assert measures["reverse_kl"]["mean"] == pytest.approx(12 / 10)
    assert measures["reverse_kl"]["seed_standard_error"] == pytest.approx(abs(3 / 6 - 9 / 4) / 2)
    assert measures["reverse_kl_per_response"]["mean"] == pytest.approx(12 / 4)
    assert measures["forward_kl_gold"] == pytest.approx(5 / 4) and measures["reverse_kl_gold"] == pytest.approx(1)
    by_position = measures["kl_by_position"]
    assert by_position["alive"] == [4, 4, 1, 1]
    assert by_position["reverse"] == pytest.approx([(0.5 + 2 + 3 + 6) / 4, 0.5 / 4, 0, 0])
    assert by_position["forward"] == pytest.approx([3 / 4, 7 / 4, 1, 1])


def test_exposure_bias_is_of_forward_kl_on_both_kinds_of_samples(measures):
    """f_student = 3/4, 7/4, 1/4, 1/4 and f_teacher = 1, 1/2: R(2) = 2.5, l eps = 1.5; and 3 over 1.5 at the end."""
    zero = measures["exposure_bias"]["zero"]["percent"]
    assert zero == pytest.approx([-25.0, 100 * 1 / 1.5, 100 * 1.25 / 1.5, 100.0])
    assert set(measures["exposure_bias"]) == {"zero", "drop", "reference"}


def test_gold_tokens(measures):
    """Bins of 0.95, 0.95 (one right) and of 0.55 (right) and 0 (wrong): 2/4 * 0.45 + 1/4 * 0.45."""
    assert measures["lm_loss_gold"] == pytest.approx(10 / 4)
    assert measures["calibration"]["ece"] == pytest.approx(0.5 * 0.45 + 0.25 * 0.45)
    assert measures["calibration"]["accuracy"] == pytest.approx(0.5)


def test_lengths_repetition_and_diversity(measures):
    assert measures["mean_response_tokens"] == pytest.approx(10 / 4) and measures["truncated"] == pytest.approx(1 / 4)
    assert measures["repetition"] == 0.0  # one 4-gram in all
    assert measures["distinct"]["words"]["1"] == pytest.approx(5 / 9)  # the cat sat a dog
    assert measures["distinct"]["tokens"]["1"] == pytest.approx(4 / 10)
    assert measures["distinct"]["tokens"]["4"] == 1.0
    assert measures["top_k_overlap"] == {"k": 2, "samples": pytest.approx(1.5 / 10), "gold": pytest.approx(1 / 4)}


def test_the_row_of_the_table(measures):
    row = row_of(measures)
    assert (row["rouge_l"], row["reverse_kl"], row["reverse_kl_per_response"]) == pytest.approx((95, 1.2, 3))
    assert (row["prompts"], row["seeds"], row["distinct_4"]) == (2, 2, 0.0)


def test_what_was_not_measured_is_none_and_nothing_else(judged):
    blocked = EvaluatedSamples(judged.texts, judged.rollouts, None, [])
    found = figures_of(blocked, REFERENCES, rouge_scores(blocked, REFERENCES), top_k=2)
    missing = {name for name, value in found.items() if value is None}
    assert missing == {
        "reverse_kl", "reverse_kl_per_response", "kl_by_position", "forward_kl_gold", "reverse_kl_gold", "lm_loss_gold", "calibration",
        "exposure_bias",
    }  # fmt: skip
    assert row_of(found)["reverse_kl"] is None and row_of(found)["rouge_l"] == pytest.approx(95)


def test_one_seed_says_nothing_about_the_spread_over_seeds(judged):
    one = EvaluatedSamples(judged.texts[:1], judged.rollouts[:1], judged.own[:1], judged.gold)
    row = row_of(figures_of(one, REFERENCES, rouge_scores(one, REFERENCES), top_k=2))
    assert row["rouge_l_standard_error"] is None and row["reverse_kl_standard_error"] is None


def test_arrays_hold_every_response_and_token(judged):
    arrays = judged.arrays(rouge_scores(judged, REFERENCES))
    assert arrays["rouge_l"].shape == arrays["lengths"].shape == arrays["truncated"].shape == (2, 2)
    assert arrays["tokens"].tolist() == [5, 1, 9, 9, 9, 9, 5, 6, 5, 1]
    assert arrays["own/reverse_kl"].tolist() == [0.5, 0.5, 2, 0, 0, 0, 3, 0, 6, 0]
    assert arrays["own/lengths"].tolist() == arrays["lengths"].tolist() == [[2, 4], [2, 2]]
    assert arrays["gold/lengths"].tolist() == [[3, 1]] and arrays["on_teacher/forward_kl"].tolist() == [1, 1, 1, 0]
    assert "own/reverse_kl" not in EvaluatedSamples(judged.texts, judged.rollouts, None, []).arrays(np.zeros((2, 2)))
