"""How sure one can be of a mean: over seeds, which sample anew, and over prompts, by the bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """The mean of scores [seeds, prompts].

    seed_standard_error: standard deviation of the seeds' means over the root of their number: how much the draw of samples moves the mean,
    the prompts given; None for one seed. prompt_standard_error, low, high: from a bootstrap over prompts of the seed-averaged score: how
    much the choice of prompts moves it; low and high bound 95 %.
    """

    mean: float
    seed_standard_error: float | None
    prompt_standard_error: float
    low: float
    high: float


def estimate(scores: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """scores: [seeds, prompts]. To compare two models give the difference of their scores: paired, hard prompts cancel."""
    scores = np.asarray(scores, np.float64)
    mean, seed_standard_error = mean_and_standard_error(scores.mean(1))
    means = prompt_draws(scores.shape[1], resamples, seed) @ scores.mean(0) / scores.shape[1]
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean, seed_standard_error, float(means.std()), float(low), float(high))


def mean_and_standard_error(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Mean, and sample standard deviation (n - 1) over the root of n: None for one value, from which nothing can be said."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def pooled(sums: np.ndarray, counts: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The same of a mean over tokens, all sums over all counts, each [seeds, prompts]: a long response weighs more than a short one."""
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    _, seed_standard_error = mean_and_standard_error(sums.sum(1) / counts.sum(1))
    draws = prompt_draws(sums.shape[1], resamples, seed)
    means = (draws @ sums.sum(0)) / (draws @ counts.sum(0))
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(sums.sum() / counts.sum()), seed_standard_error, float(means.std()), float(low), float(high))


def prompt_draws(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """How often each prompt comes in a draw of as many prompts with replacement: float64 [resamples, prompts].

    The same for all that has the same prompts, so that what is made of two models with it is paired.
    """
    return np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(np.float64)
