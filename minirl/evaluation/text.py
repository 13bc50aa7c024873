"""Quality and variety of sampled texts: Rouge-L, Dist-n and repetition."""

from collections.abc import Hashable, Sequence
from functools import cache

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from minirl.config.evaluation import RougeTokenizer
from minirl.errors import InputError
from minirl.evaluation.words import rouge_tokenizer, words_of


def rouge_l(prediction: str, references: Sequence[str], tokenizer: RougeTokenizer = "any_script") -> float:
    """Rouge-L F-measure, 0 to 100, Porter-stemmed, the best over the references (`rouge-score`, as in the reference code's evaluation).

    With the tokenizer "paper", text in other scripts than the Latin one scores 0. Raises InputError without a reference.
    """
    if not references:
        raise InputError("Rouge-L needs at least one reference; leave prompts without a gold response out of the evaluation")
    return 100.0 * _scorer(tokenizer).score_multi(references, prediction)["rougeL"].fmeasure


@cache
def _scorer(tokenizer: RougeTokenizer) -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=rouge_tokenizer(tokenizer))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Dist-n: the distinct n-grams over all n-grams of all texts together, in `words_of` the texts; 0 where no text has n words.

    It falls as the set grows, so compare only sets of similar size.
    """
    return distinct_ngrams([words_of(text) for text in texts], n)


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
