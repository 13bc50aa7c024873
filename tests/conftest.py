"""The settings and the Ray cluster that all tests share: one cluster for the session, because it takes seconds to start."""

import os

os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest

# Hypothesis would otherwise fail an example that takes more than 200 ms, which depends on the machine.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray cluster of this test session, with more logical CPUs than the machine has cores."""
    from actors.groups.placement import cluster

    os.environ.pop("RAY_ADDRESS", None)
    with cluster(logical_cpus=16, object_store_bytes=512 * 2**20):
        yield
