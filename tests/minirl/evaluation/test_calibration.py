"""Expected calibration error against hand-computed values and a loop over the bins."""

import numpy as np
import pytest

from minirl.evaluation.calibration import calibration


def test_ece_by_hand():
    """Bin (0.5, 0.6]: 0.6 right, 0.52 wrong: |0.5 - 0.56| = 0.06. Bin (0.9, 1]: 0.95, 1.0 right, 0.99 wrong: |2/3 - 0.98|."""
    measured = calibration(np.array([0.6, 0.52, 0.95, 1.0, 0.99]), np.array([1, 0, 1, 1, 0]))
    assert measured.ece == pytest.approx(2 / 5 * 0.06 + 3 / 5 * (0.98 - 2 / 3))
    assert [b.count for b in measured.bins] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert measured.bins[9].confidence == pytest.approx(0.98) and measured.bins[9].accuracy == pytest.approx(2 / 3)
    assert measured.bins[0].confidence is measured.bins[0].accuracy is None
    assert (measured.accuracy, measured.confidence) == pytest.approx((0.6, 0.812))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bins_are_open_below_and_closed_above(dtype):
    edges = calibration(np.arange(1, 11, dtype=dtype) / dtype(10), np.ones(10))
    assert [b.count for b in edges.bins] == [1] * 10
    just_above = calibration(np.arange(1, 10, dtype=dtype) / dtype(10) + dtype(1e-4), np.ones(9))
    assert [b.count for b in just_above.bins] == [0] + [1] * 9


def test_ece_is_the_loop_over_bins():
    draw = np.random.default_rng(0)
    confidence, correct = draw.uniform(0.001, 1, 500), draw.random(500) < 0.4
    expected = 0.0
    for b in range(10):
        inside = [i for i in range(500) if b / 10 < confidence[i] <= (b + 1) / 10]
        if inside:
            gap = sum(correct[i] for i in inside) / len(inside) - sum(confidence[i] for i in inside) / len(inside)
            expected += len(inside) / 500 * abs(gap)
    assert calibration(confidence, correct).ece == pytest.approx(expected)


def test_without_a_prediction_there_is_no_calibration():
    assert calibration(np.array([]), np.array([])).ece is None
