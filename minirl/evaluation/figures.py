"""Every figure of one model on one set, ready for JSON.

KL figures are exact, in nats, at temperature 1, over the whole shared vocabulary, end positions included, responses cut at the limit kept,
of samples for which nothing was truncated or blocked.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from minirl.evaluation.calibration import calibration
from minirl.evaluation.exposure import FORMS, exposure_curve
from minirl.evaluation.intervals import estimate, pooled
from minirl.evaluation.positions import means_by_position
from minirl.evaluation.samples import EvaluatedSamples, counts, flat, grid, sums
from minirl.evaluation.sets import gold_words
from minirl.evaluation.text import distinct_n, distinct_ngrams, repetition, rouge_l

NGRAMS = (1, 2, 3, 4)
GOLD_WORDS = ((0, 5), (6, 10), (11, None))  # the paper's classes of S-NI, by the length of the gold response
ModelFigures = dict[str, Any]


def rouge_scores(judged: EvaluatedSamples, references: Sequence[tuple[str, ...]]) -> np.ndarray:
    """[seeds, prompts]"""
    return np.array([[rouge_l(text, wanted) for text, wanted in zip(texts, references, strict=True)] for texts in judged.texts])


def figures_of(judged: EvaluatedSamples, references: Sequence[tuple[str, ...]], scores: np.ndarray, *, top_k: int) -> ModelFigures:
    """scores: those of `rouge_scores`. A figure that was not measured is None."""
    return {
        "prompts": scores.shape[1],
        "seeds": scores.shape[0],
        "rouge_l": asdict(estimate(scores)) | {"by_seed": scores.mean(1).tolist()},
        "rouge_l_by_gold_words": _by_gold_words(scores, references),
        **_of_responses(judged),
        **_of_own_samples(judged),
        **_of_gold(judged),
        "top_k_overlap": {
            "k": top_k,
            "samples": _mean(flat([d for row in judged.own for d in row], "overlap")) if judged.own else None,
            "gold": _mean(flat(judged.gold, "overlap")) if judged.gold else None,
        },
        "exposure_bias": _exposure(judged),
    }


def _by_gold_words(scores: np.ndarray, references: Sequence[tuple[str, ...]]) -> list[ModelFigures]:
    words = np.array([gold_words(wanted) for wanted in references])
    rows = []
    for low, high in GOLD_WORDS:
        here = (words >= low) & (words <= (np.inf if high is None else high))
        found = asdict(estimate(scores[:, here])) if here.any() else None
        rows.append({"low": low, "high": high, "prompts": int(here.sum()), "rouge_l": found})
    return rows


def _of_responses(judged: EvaluatedSamples) -> ModelFigures:
    texts = [text for one_seed in judged.texts for text in one_seed]
    rollouts = [rollout for one_seed in judged.rollouts for rollout in one_seed]
    tokens = [rollout.response_tokens.tolist() for rollout in rollouts]
    return {
        "mean_response_tokens": _mean(np.array([len(row) for row in tokens])),
        "truncated": _mean(np.array([rollout.truncated for rollout in rollouts])),
        "repetition": repetition(tokens),
        "distinct": {
            "words": {str(n): distinct_n(texts, n) for n in NGRAMS},
            "tokens": {str(n): distinct_ngrams(tokens, n) for n in NGRAMS},
        },
    }


def _of_own_samples(judged: EvaluatedSamples) -> ModelFigures:
    own = judged.own
    if own is None:
        return dict.fromkeys(("reverse_kl", "reverse_kl_per_response", "kl_by_position"))
    totals, lengths = sums(own, "reverse_kl"), counts(own)
    reverse, alive = means_by_position(grid(own, "reverse_kl"))
    forward, _ = means_by_position(grid(own, "forward_kl"))
    return {
        "reverse_kl": asdict(pooled(totals, lengths)),
        "reverse_kl_per_response": asdict(estimate(totals)),
        "kl_by_position": {"reverse": reverse, "forward": forward, "alive": alive},
    }


def _of_gold(judged: EvaluatedSamples) -> ModelFigures:
    """None where no prompt has a gold response in tokens."""
    if not judged.gold:
        return dict.fromkeys(("forward_kl_gold", "reverse_kl_gold", "lm_loss_gold", "calibration"))
    gold = {name: flat(judged.gold, name) for name in ("forward_kl", "reverse_kl", "student_logprobs", "confidence", "correct")}
    return {
        "forward_kl_gold": _mean(gold["forward_kl"]),
        "reverse_kl_gold": _mean(gold["reverse_kl"]),
        "lm_loss_gold": -_mean(gold["student_logprobs"]),
        "calibration": asdict(calibration(gold["confidence"], gold["correct"])),
    }


def _exposure(judged: EvaluatedSamples) -> ModelFigures | None:
    if judged.own is None or judged.on_teacher is None:
        return None
    own, teachers = (grid(rows, "forward_kl") for rows in (judged.own, judged.on_teacher))
    return {form: asdict(exposure_curve(own, teachers, form)) for form in FORMS}


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64))
