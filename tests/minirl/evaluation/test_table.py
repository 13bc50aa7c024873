"""A row of the closing table, by hand: pooled means weigh positions, not responses or seeds."""

import numpy as np
import pytest

from minirl.evaluation.table import Judged, row_of
from minirl.rollout import Rollout


def rollout(tokens: int, truncated: bool) -> Rollout:
    return Rollout(np.array([7]), np.full(tokens, 9), np.zeros(tokens, np.float32), truncated, 1, 0, 0)


def test_a_row_by_hand():
    judged = Judged(
        texts=[["the cat sat", "a dog"], ["the cat", "a dog"]],
        rollouts=[[rollout(2, False), rollout(8, True)], [rollout(4, False), rollout(6, False)]],
        divergences=[[(1.0, 0.0, 2), (2.0, 0.0, 8)], [(3.0, 0.0, 4), (6.0, 0.0, 6)]],
        gold=[(0.0, 4.0, 3), (0.0, 1.0, 7)],
    )
    row = row_of(judged, [["the cat sat"], ["a dog"]])
    # Rouge-L of "the cat" against "the cat sat": precision 1, recall 2/3, F 0.8; every other text is its reference.
    assert row["rouge_l"] == pytest.approx(100 * (1 + 1 + 0.8 + 1) / 4)
    assert row["rouge_l_standard_error"] == pytest.approx(100 * abs(1 - 0.9) / 2)  # two seeds: half their distance
    assert row["reverse_kl"] == pytest.approx(12 / 20)
    assert row["reverse_kl_standard_error"] == pytest.approx(abs(3 / 10 - 9 / 10) / 2)
    assert row["reverse_kl_per_response"] == pytest.approx(12 / 4)
    assert row["forward_kl_gold"] == pytest.approx(5 / 10)
    assert row["mean_response_tokens"] == pytest.approx(20 / 4)
    assert row["truncated"] == pytest.approx(1 / 4)
    assert (row["prompts"], row["seeds"]) == (2, 2)


def test_one_seed_says_nothing_about_the_spread_over_seeds():
    row = row_of(Judged([["a b"]], [[rollout(2, False)]], [[(1.0, 1.0, 2)]], [(0.0, 1.0, 2)]), [["a b"]])
    assert row["rouge_l_standard_error"] is None and row["reverse_kl_standard_error"] is None
