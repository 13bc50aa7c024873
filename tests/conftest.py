"""The Ray cluster that tests share: one for the session, because a cluster takes seconds to start."""

import os

os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray cluster of this test session, with more logical CPUs than the machine has cores."""
    from actors.groups.placement import cluster

    os.environ.pop("RAY_ADDRESS", None)
    with cluster(logical_cpus=16, object_store_bytes=512 * 2**20):
        yield
