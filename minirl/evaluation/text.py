"""How good and how varied sampled texts are: Rouge-L, Dist-n, repetition, and how sure one can be of a mean."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from minirl.errors import InputError


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Rouge-L F-measure, 0 to 100, Porter-stemmed, the best over the references (`rouge-score`, as the reference code's evaluation).

    The package compares lower-cased ASCII letters and digits only: text in other scripts scores 0. Raises InputError without a reference.
    """
    if not references:
        raise InputError("Rouge-L needs at least one reference; leave prompts without a gold response out of the evaluation")
    return 100.0 * _scorer().score_multi(references, prediction)["rougeL"].fmeasure


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Dist-n: the distinct n-grams over all n-grams of all texts together, words split on white space; 0 where no text has n words.

    Falls as the set grows, so compare only sets of like size.
    """
    return distinct_ngrams([text.split() for text in texts], n)


def distinct_ngrams(rows: Sequence[Sequence[Hashable]], n: int) -> float:
    """The same of rows of anything, such as token ids."""
    grams = [gram for row in rows for gram in ngrams(row, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(rows: Sequence[Sequence[Hashable]], n: int = 4) -> float:
    """Mean over responses of the share of n-grams that came before in the same response (seq-rep-n, Welleck et al. 2020).

    A response of fewer than n tokens repeats nothing.
    """
    repeated = [1 - len(set(grams)) / len(grams) if (grams := ngrams(row, n)) else 0.0 for row in rows]
    return float(np.mean(repeated))


def ngrams(row: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(row[start : start + n]) for start in range(len(row) - n + 1)]


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


def estimate(scores: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """scores: [seeds, prompts]. To compare two models give the difference of their scores: paired, hard prompts cancel."""
    scores = np.asarray(scores, np.float64)
    mean, seed_standard_error = mean_and_standard_error(scores.mean(1))
    means = bootstrap_means(scores.mean(0), resamples=resamples, seed=seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean, seed_standard_error, float(means.std()), float(low), float(high))


def mean_and_standard_error(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Mean, and sample standard deviation (n - 1) over the root of n: None for one value, from which nothing can be said."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def bootstrap_means(scores: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Means of `resamples` draws of the prompts with replacement: [prompts] -> [resamples]."""
    choice = np.random.default_rng(seed).integers(len(scores), size=(resamples, len(scores)))
    return np.asarray(scores, np.float64)[choice].mean(1)
