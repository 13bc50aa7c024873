"""Whether a model is as often right as it is sure."""

from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Predictions with low < confidence <= high; means are None in an empty bin."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """ece: sum over bins of count / all |accuracy - confidence| (Guo et al. 2017); None without a prediction."""

    ece: float | None
    accuracy: float | None
    confidence: float | None
    bins: list[Bin]


def calibration(confidence: np.ndarray, correct: np.ndarray) -> Calibration:
    """confidence: highest probability of each prediction, (0, 1]; correct: whether that token is the gold one. Both [N].

    Ten bins (lo, hi] of equal width.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    edges = np.arange(BINS + 1) / BINS
    # Rounded, so that a float32 0.3 lies in (0.2, 0.3] and not above it.
    place = np.clip(np.searchsorted(edges, confidence.round(6), side="left") - 1, 0, BINS - 1)
    bins, gap = [], 0.0
    for number in range(BINS):
        here = place == number
        means = (float(confidence[here].mean()), float(correct[here].mean())) if here.any() else (None, None)
        bins.append(Bin(float(edges[number]), float(edges[number + 1]), int(here.sum()), *means))
        if here.any():
            gap += here.mean() * abs(means[1] - means[0])
    if not len(confidence):
        return Calibration(None, None, None, bins)
    return Calibration(float(gap), float(correct.mean()), float(confidence.mean()), bins)
