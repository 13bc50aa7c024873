"""Every figure of one model on one evaluation set, as a dict ready for JSON.

KL figures are exact and in nats, at temperature 1, over the whole shared vocabulary. They include end positions and responses cut at the
limit, and come from samples for which no distribution was truncated and no n-gram was blocked.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from minirl.config.evaluation import RougeTokenizer
from minirl.evaluation.calibration import calibration
from minirl.evaluation.exposure import FORMS, exposure_curve
from minirl.evaluation.intervals import estimate, pooled_estimate
from minirl.evaluation.positions import means_by_position
from minirl.evaluation.samples import EvaluatedSamples, concatenated, field_grid, response_lengths, response_sums
from minirl.evaluation.sets import gold_words
from minirl.evaluation.text import distinct_n, distinct_ngrams, repetition, rouge_l

NGRAMS = (1, 2, 3, 4)
GOLD_WORDS = ((0, 5), (6, 10), (11, None))  # the paper's classes of S-NI, by the length of the gold response
ModelFigures = dict[str, Any]


def rouge_scores(samples: EvaluatedSamples, references: Sequence[tuple[str, ...]], tokenizer: RougeTokenizer = "any_script") -> np.ndarray:
    """Rouge-L of every response: [seeds, prompts]. references: one tuple a prompt."""
    return np.array([[rouge_l(text, refs, tokenizer) for text, refs in zip(texts, references, strict=True)] for texts in samples.texts])


def figures_of(
    samples: EvaluatedSamples,
    references: Sequence[tuple[str, ...]],
    scores: np.ndarray,
    *,
    top_k: int,
    teacher_agreement: ModelFigures | None = None,
) -> ModelFigures:
    """scores: the result of `rouge_scores`. teacher_agreement: that of `agreement`. A figure that was not measured is None."""
    on_samples = samples.on_model_samples
    return {
        "prompts": scores.shape[1],
        "seeds": scores.shape[0],
        "rouge_l": asdict(estimate(scores)) | {"by_seed": scores.mean(1).tolist()},
        "rouge_l_by_gold_words": _rouge_by_gold_words(scores, references),
        **_response_figures(samples),
        **_kl_figures(samples),
        **_gold_figures(samples),
        "top_k_overlap": {
            "k": top_k,
            "samples": _mean(concatenated([d for one_seed in on_samples for d in one_seed], "overlap")) if on_samples else None,
            "gold": _mean(concatenated(samples.on_gold, "overlap")) if samples.on_gold else None,
        },
        "exposure_bias": _exposure_bias(samples),
        "teacher_agreement": teacher_agreement,
    }


def _rouge_by_gold_words(scores: np.ndarray, references: Sequence[tuple[str, ...]]) -> list[ModelFigures]:
    words = np.array([gold_words(refs) for refs in references])
    rows = []
    for low, high in GOLD_WORDS:
        in_class = (words >= low) & (words <= (np.inf if high is None else high))
        rouge = asdict(estimate(scores[:, in_class])) if in_class.any() else None
        rows.append({"low": low, "high": high, "prompts": int(in_class.sum()), "rouge_l": rouge})
    return rows


def _response_figures(samples: EvaluatedSamples) -> ModelFigures:
    """Lengths, repetition and diversity of the responses."""
    texts = [text for one_seed in samples.texts for text in one_seed]
    rollouts = [rollout for one_seed in samples.rollouts for rollout in one_seed]
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


def _kl_figures(samples: EvaluatedSamples) -> ModelFigures:
    """KL on the model's samples; None where n-grams were blocked."""
    rows = samples.on_model_samples
    if rows is None:
        return dict.fromkeys(("reverse_kl", "reverse_kl_per_response", "kl_by_position"))
    sums, lengths = response_sums(rows, "reverse_kl"), response_lengths(rows)
    reverse, alive = means_by_position(field_grid(rows, "reverse_kl"))
    forward, _ = means_by_position(field_grid(rows, "forward_kl"))
    return {
        "reverse_kl": asdict(pooled_estimate(sums, lengths)),
        "reverse_kl_per_response": asdict(estimate(sums)),
        "kl_by_position": {"reverse": reverse, "forward": forward, "alive": alive},
    }


def _gold_figures(samples: EvaluatedSamples) -> ModelFigures:
    """Figures on gold tokens; None where no prompt has a gold response in tokens."""
    if not samples.on_gold:
        return dict.fromkeys(("forward_kl_gold", "reverse_kl_gold", "lm_loss_gold", "calibration"))
    gold = {name: concatenated(samples.on_gold, name) for name in ("forward_kl", "reverse_kl", "student_logprobs", "confidence", "correct")}
    return {
        "forward_kl_gold": _mean(gold["forward_kl"]),
        "reverse_kl_gold": _mean(gold["reverse_kl"]),
        "lm_loss_gold": -_mean(gold["student_logprobs"]),
        "calibration": asdict(calibration(gold["confidence"], gold["correct"])),
    }


def _exposure_bias(samples: EvaluatedSamples) -> ModelFigures | None:
    if samples.on_model_samples is None or samples.on_teacher_samples is None:
        return None
    on_student, on_teacher = (field_grid(rows, "forward_kl") for rows in (samples.on_model_samples, samples.on_teacher_samples))
    return {form: asdict(exposure_curve(on_student, on_teacher, form)) for form in FORMS}


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64))
