"""Expected calibration error (ECE) of next-token predictions, with the ten bins behind it."""

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
    """ece: sum over bins of count / all |accuracy - confidence| (Guo et al. 2017). The figures are None without a prediction."""

    ece: float | None
    accuracy: float | None
    confidence: float | None
    bins: list[Bin]


def calibration(confidence: np.ndarray, correct: np.ndarray) -> Calibration:
    """confidence: highest probability of each prediction, (0, 1]; correct: whether that token is the gold one. Both [N].

    Ten bins (low, high] of equal width.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    edges = np.arange(BINS + 1) / BINS
    # Rounding keeps a float32 0.3 in (0.2, 0.3]; unrounded it is slightly larger.
    bin_index = np.clip(np.searchsorted(edges, confidence.round(6), side="left") - 1, 0, BINS - 1)
    bins, ece = [], 0.0
    for index in range(BINS):
        in_bin = bin_index == index
        means = (float(confidence[in_bin].mean()), float(correct[in_bin].mean())) if in_bin.any() else (None, None)
        bins.append(Bin(float(edges[index]), float(edges[index + 1]), int(in_bin.sum()), *means))
        if in_bin.any():
            ece += in_bin.mean() * abs(means[1] - means[0])
    if not len(confidence):
        return Calibration(None, None, None, bins)
    return Calibration(float(ece), float(correct.mean()), float(confidence.mean()), bins)
