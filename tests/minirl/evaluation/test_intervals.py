"""Estimates with their standard errors and bootstrap intervals, against hand-computed and theoretical values."""

import numpy as np
import pytest

from minirl.evaluation.intervals import bootstrap_counts, estimate, mean_and_standard_error, pooled_estimate


def test_mean_and_standard_error_by_hand():
    """1, 2, 6: mean 3, squared deviations 4 + 1 + 9 = 14, variance 7, standard error sqrt(7/3)."""
    assert mean_and_standard_error([1.0, 2.0, 6.0]) == pytest.approx((3.0, (7 / 3) ** 0.5))
    assert mean_and_standard_error([4.0]) == (4.0, None)


def test_draws_of_two_prompts():
    """Draws from {0, 1} with replacement have means 0, 1/2, 1 with probability 1/4, 1/2, 1/4."""
    means = bootstrap_counts(2, resamples=20_000, seed=1) @ np.array([0.0, 1.0]) / 2
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / 20_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.015)


def test_bootstrap_standard_error_is_the_standard_error_of_a_mean():
    """The bootstrap's standard error approaches the population's standard deviation over the root of n."""
    scores = np.random.default_rng(0).normal(size=400)
    means = bootstrap_counts(400, resamples=4000, seed=0) @ scores / 400
    assert means.std() == pytest.approx(scores.std() / 20, rel=0.05)


def test_estimate_tells_seeds_from_prompts():
    """If only prompts differ, the spread is over prompts and not over seeds; if only seeds differ, the reverse."""
    by_prompt, by_seed = np.array([[0.0, 10.0], [0.0, 10.0]]), np.array([[4.0, 4.0], [6.0, 6.0]])
    prompts, seeds = estimate(by_prompt), estimate(by_seed)
    assert (prompts.mean, prompts.seed_standard_error, prompts.low, prompts.high) == (5.0, 0.0, 0.0, 10.0)
    assert prompts.prompt_standard_error == pytest.approx(50**0.5 / 2, rel=0.05)
    assert (seeds.mean, seeds.prompt_standard_error, seeds.low, seeds.high) == (5.0, 0.0, 5.0, 5.0)
    assert seeds.seed_standard_error == pytest.approx(1.0)


def test_estimate_repeats():
    scores = np.random.default_rng(3).random((3, 50))
    assert estimate(scores) == estimate(scores)
    assert estimate(scores) != estimate(scores, seed=1)


def test_the_estimate_of_a_difference_cancels_hard_prompts():
    """A constant gain over prompts of very different difficulty is certain, though the mean itself is not."""
    baseline = np.array([[0.0, 50.0, 100.0], [10.0, 40.0, 90.0]])
    gain = estimate((baseline + 2.0) - baseline)
    assert gain.mean == pytest.approx(2.0)
    assert gain.prompt_standard_error < 1e-9 < estimate(baseline).prompt_standard_error


def test_a_pooled_mean_weighs_tokens_by_hand():
    """Sums 1, 6 over 1, 3 tokens and 3, 6 over 3, 3: 16 / 10; by seed 7/4 and 9/6, whose half distance is 1/8."""
    pooled = pooled_estimate(np.array([[1.0, 6.0], [3.0, 6.0]]), np.array([[1, 3], [3, 3]]))
    assert pooled.mean == pytest.approx(1.6) and pooled.seed_standard_error == pytest.approx(0.125)
    assert (pooled.low, pooled.high) == pytest.approx((1.0, 2.0))  # the first prompt twice: 4/4, the second: 12/6


def test_a_pooled_mean_of_equal_lengths_is_the_mean():
    sums = np.random.default_rng(0).random((3, 40))
    assert vars(pooled_estimate(sums, np.ones((3, 40)))) == pytest.approx(vars(estimate(sums)))
