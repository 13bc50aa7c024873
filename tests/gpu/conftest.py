"""Skips every test of this folder, in one sentence, where torch sees no GPU."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def gpus() -> int:
    """The number of GPUs. An automatic fixture of the session, so that it skips a test before anything starts for it."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        pytest.skip("torch sees no GPU here; run `make test-gpu` once on a machine that has one")
    return count


@pytest.fixture(scope="session")
def two_gpus(gpus: int) -> None:
    if gpus < 2:
        pytest.skip("this test needs two GPUs, because NCCL refuses two ranks on one; run `make test-gpu` on a machine that has them")
