"""Means with their uncertainty: standard errors over sampling seeds, 95 % bootstrap intervals over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """The mean of scores [seeds, prompts], with its uncertainty over seeds and over prompts.

    seed_standard_error: standard deviation of the seeds' means over the root of their number, None for one seed. It shows how much the mean
    moves when the same prompts are sampled again. prompt_standard_error, low, high: from a bootstrap over prompts of the seed-averaged
    score. They show how much the mean moves with another choice of prompts; low and high bound 95 %.
    """

    mean: float
    seed_standard_error: float | None
    prompt_standard_error: float
    low: float
    high: float


def estimate(scores: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """scores: [seeds, prompts]. To compare two models, pass the difference of their scores: pairing cancels the difficulty of prompts."""
    scores = np.asarray(scores, np.float64)
    mean, seed_standard_error = mean_and_standard_error(scores.mean(1))
    means = bootstrap_counts(scores.shape[1], resamples, seed) @ scores.mean(0) / scores.shape[1]
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean, seed_standard_error, float(means.std()), float(low), float(high))


def mean_and_standard_error(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Mean, and sample standard deviation (n - 1) over the root of n; the latter is None for a single value."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def pooled_estimate(sums: np.ndarray, counts: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean over tokens: all sums over all counts, each [seeds, prompts]. A long response weighs more than a short one."""
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    _, seed_standard_error = mean_and_standard_error(sums.sum(1) / counts.sum(1))
    draws = bootstrap_counts(sums.shape[1], resamples, seed)
    means = (draws @ sums.sum(0)) / (draws @ counts.sum(0))
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(sums.sum() / counts.sum()), seed_standard_error, float(means.std()), float(low), float(high))


def bootstrap_counts(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """How often each bootstrap draw, of as many prompts with replacement, holds each prompt: float64 [resamples, prompts].

    Equal arguments give equal draws, so two models that are resampled over the same prompts are paired.
    """
    return np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(np.float64)
