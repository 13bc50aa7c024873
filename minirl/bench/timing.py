"""Timing of bare torch code on a device: the median of a few runs, and the rate of a large matrix product."""

import time
from collections.abc import Callable
from statistics import median

import torch

TIMED_RUNS = 3  # after one warm-up run
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns: far more than a cache holds, so that the product's rate no longer grows


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median of a few runs after one that warms up; on a GPU, up to the end of the work that the run queued."""

    def timed_run() -> float:
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    timed_run()
    return median(timed_run() for _ in range(TIMED_RUNS))


@torch.no_grad()
def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the product of two large square matrices, with this process's threads on a CPU: the rate that an MFU refers to."""
    size = MATRIX_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / median_seconds(lambda: torch.mm(left, right, out=out), device)
