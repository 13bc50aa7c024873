"""How alike a model's greedy answers are to the teacher's: Rouge-L, exact matches, and identical starts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minirl.config.evaluation import RougeTokenizer
from minirl.evaluation.intervals import estimate
from minirl.evaluation.text import rouge_l


@dataclass(frozen=True)
class GreedyAnswers:
    """The answers of one model to the prompts of one set, of the most likely token each time.

    tokens: one int64 [T] a prompt, with the end token. texts: without it.
    """

    tokens: list[np.ndarray]
    texts: list[str]

    def arrays(self) -> dict[str, np.ndarray]:
        """`lengths` [prompts] and the `tokens` of all prompts, one after another, for an .npz file."""
        lengths = np.array([len(row) for row in self.tokens])
        return {"greedy/lengths": lengths, "greedy/tokens": np.concatenate(self.tokens).astype(np.int32)}


def greedy_tokens(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The tokens of each answer, from the `arrays` of `GreedyAnswers`."""
    return np.split(arrays["greedy/tokens"].astype(np.int64), arrays["greedy/lengths"].cumsum()[:-1])


def agreement(answers: GreedyAnswers, teachers: GreedyAnswers, tokenizer: RougeTokenizer = "any_script") -> dict[str, Any]:
    """Figures of both models' answers to the same prompts, ready for JSON.

    rouge_l: of the texts against the teacher's, 0 to 100; equal texts count 100. exact_match: the share of equal texts. identical_start:
    for each position t, from 1 to the teacher's longest answer, the share of prompts whose first t tokens are identical. Identical answers
    of fewer tokens count.

    Worked example: [5, 2] against [5, 2] and [5, 6, 2] against [5, 7, 2] have identical_start [1, 1/2, 1/2].
    """
    pairs = list(zip(answers.texts, teachers.texts, strict=True))
    scores = np.array([[100.0 if text == teachers_text else rouge_l(text, [teachers_text], tokenizer) for text, teachers_text in pairs]])
    common = np.array([_common_start(*rows) for rows in zip(answers.tokens, teachers.tokens, strict=True)])
    return {
        "rouge_l": asdict(estimate(scores)),
        "exact_match": float(np.mean([text == teachers_text for text, teachers_text in pairs])),
        "identical_start": [float(np.mean(common >= t)) for t in range(1, 1 + max(map(len, teachers.tokens)))],
    }


def _common_start(first: Sequence[int], second: Sequence[int]) -> float:
    """How many tokens at the start are the same; infinity if all are."""
    if np.array_equal(first, second):
        return np.inf
    length = min(len(first), len(second))
    different = np.flatnonzero(np.asarray(first[:length]) != np.asarray(second[:length]))
    return float(different[0]) if len(different) else float(length)
