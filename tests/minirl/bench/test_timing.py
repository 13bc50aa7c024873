"""Timing: the median of the runs after the first, and the rate of a matrix product."""

import pytest
import torch

from minirl.bench import timing


def test_the_first_run_does_not_count(monkeypatch):
    clock = iter([0.0, 100.0, 0.0, 1.0, 0.0, 5.0, 0.0, 2.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    runs = []
    assert timing.median_seconds(lambda: runs.append(1), torch.device("cpu")) == 2.0
    assert len(runs) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_counts_a_multiplication_and_an_addition(dtype, monkeypatch):
    monkeypatch.setitem(timing.MATRIX_SIZE, "cpu", 64)
    monkeypatch.setattr(timing, "median_seconds", lambda run, device: run() is not None and 0.5)
    assert timing.matmul_rate(dtype, torch.device("cpu")) == 2 * 64**3 / 0.5
