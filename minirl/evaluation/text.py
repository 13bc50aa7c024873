"""Quality and variety of sampled texts: Rouge-L, Dist-n and repetition."""

from collections.abc import Hashable, Sequence
from functools import cache

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from minirl.errors import InputError


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Rouge-L F-measure, 0 to 100, Porter-stemmed, the best over the references (`rouge-score`, as in the reference code's evaluation).

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

    It falls as the set grows, so compare only sets of similar size.
    """
    return distinct_ngrams([text.split() for text in texts], n)


def distinct_ngrams(rows: Sequence[Sequence[Hashable]], n: int) -> float:
    """Dist-n of rows of any items, such as token ids."""
    grams = [gram for row in rows for gram in ngrams(row, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(rows: Sequence[Sequence[Hashable]], n: int = 4) -> float:
    """Mean over responses of the share of n-grams that occurred earlier in the same response (seq-rep-n, Welleck et al. 2020).

    A response of fewer than n tokens has repetition 0.
    """
    repeated = [1 - len(set(grams)) / len(grams) if (grams := ngrams(row, n)) else 0.0 for row in rows]
    return float(np.mean(repeated))


def ngrams(row: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(row[start : start + n]) for start in range(len(row) - n + 1)]
