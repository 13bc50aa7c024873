"""One row of the closing table: a model's own samples on held-out prompts, judged against references and against the teacher.

Definitions: reverse KL pooled over all positions of the model's own samples at temperature 1, end position included, responses cut at
the limit kept; forward KL pooled over teacher-forced gold positions. Both exact, over the whole shared vocabulary, nats.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from minirl.evaluation.estimates import estimate
from minirl.evaluation.text import distinct_n, rouge_l
from minirl.rollout import Rollout

Divergence = tuple[float, float, int]  # summed reverse KL, summed forward KL, targets


@dataclass(frozen=True)
class Judged:
    """The responses of one model to the same prompts at several seeds, each list [seeds][prompts]; gold: one divergence a gold sequence."""

    texts: list[list[str]]
    rollouts: list[list[Rollout]]
    divergences: list[list[Divergence]]
    gold: list[Divergence]


def row_of(judged: Judged, references: Items[Items[str]]) -> dict[str, float | int | None]:
    """The numbers of one model. rouge_l: mean, with the standard error over seeds and a bootstrap interval over prompts."""
    scores = np.array([[rouge_l(text, wanted) for text, wanted in zip(texts, references, strict=True)] for texts in judged.texts])
    rouge = estimate(scores)
    rollouts = [rollout for one_seed in judged.rollouts for rollout in one_seed]
    divergences = [divergence for one_seed in judged.divergences for divergence in one_seed]
    per_seed = [sum(d[0] for d in one_seed) / sum(d[2] for d in one_seed) for one_seed in judged.divergences]
    return {
        "rouge_l": rouge.mean,
        "rouge_l_standard_error": rouge.seed_standard_error,
        "rouge_l_low": rouge.low,
        "rouge_l_high": rouge.high,
        "reverse_kl": sum(d[0] for d in divergences) / sum(d[2] for d in divergences),
        "reverse_kl_standard_error": float(np.std(per_seed, ddof=1) / len(per_seed) ** 0.5) if len(per_seed) > 1 else None,
        "reverse_kl_per_response": sum(d[0] for d in divergences) / len(divergences),
        "forward_kl_gold": sum(d[1] for d in judged.gold) / sum(d[2] for d in judged.gold),
        "mean_response_tokens": float(np.mean([len(rollout.response_tokens) for rollout in rollouts])),
        "truncated": float(np.mean([rollout.truncated for rollout in rollouts])),
        "distinct_4": distinct_n([text for texts in judged.texts for text in texts], 4),
        "prompts": len(references),
        "seeds": len(judged.texts),
    }
