"""Where processes stand: whose cluster a run uses, what a worker reserves, and what its process is told."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.config import ClusterConfig, EngineConfig, LearnerConfig, RolloutConfig
from actors.groups.placement import bundle, divide_cores, share_all_cores, worker_environment
from actors.weights.nccl_channel import NcclChannel
from actors.workers.rollout import weight_transfer
from minirl.errors import InputError

# In a process of its own: the suite's own cluster is alive in this one. Says where it ran and with how many CPUs.
RUN = """
import json, ray
from actors.placement import cluster, device_of
from actors.config import ClusterConfig
from minirl.errors import InputError
said = {}
try:
    with cluster(3, 2**27):
        said = {"address": ray.get_runtime_context().gcs_address, "cpus": ray.cluster_resources()["CPU"]}
        said["device"] = device_of(ClusterConfig())
        device_of(ClusterConfig(device="cuda"))
except InputError as error:
    said["refused"] = str(error)
print(json.dumps(said | {"running": ray.is_initialized()}))
"""


@pytest.fixture
def machine() -> Iterator[dict[str, str]]:
    """The environment of a machine of its own, as far as Ray's notes about running clusters go; its clusters ask for a token."""
    with tempfile.TemporaryDirectory(prefix="r") as directory:  # a short path: Ray's sockets live below it
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        yield inherited | {"RAY_TMPDIR": directory, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


@contextlib.contextmanager
def somebody_elses_cluster(machine: dict[str, str]) -> Iterator[str]:
    """What `ray start --head` leaves on a machine, for as long as the block lasts; yields its address."""
    command = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--port=0", "--num-cpus=5", "--object-store-memory=134217728",
        "--include-dashboard=false", "--disable-usage-stats",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=machine, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    note = Path(machine["RAY_TMPDIR"]) / "ray" / "ray_current_cluster"
    try:
        deadline = time.monotonic() + 60
        while not note.is_file() and time.monotonic() < deadline:
            time.sleep(0.2)
        yield note.read_text().strip()
    finally:
        process.terminate()
        process.wait(timeout=60)


def run_on(machine: dict[str, str], **variables: str) -> dict:
    done = subprocess.run([sys.executable, "-c", RUN], env=machine | variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_starts_its_own_cluster_beside_another_and_attaches_where_it_is_told_to(machine):
    with somebody_elses_cluster(machine) as address:
        own = run_on(machine, RAY_ADDRESS="")
        assert own["address"] != address
        assert own["cpus"] == 3
        for _ in range(2):  # the end of the first does not end the cluster
            attached = run_on(machine, RAY_ADDRESS=address)
            assert (attached["address"], attached["cpus"]) == (address, 5)
        stranger = run_on(machine, RAY_ADDRESS=address, RAY_AUTH_MODE="disabled", RAY_NUM_REDIS_GET_RETRIES="2")
    for said in (own, attached):
        assert said["device"] == "cpu"
        assert said["refused"].startswith("cluster.device is cuda but the Ray cluster has no GPU")
        assert not said["running"]
    assert stranger["refused"].startswith(f"the Ray cluster at RAY_ADDRESS={address} cannot be reached")


def test_a_tensor_parallel_worker_is_one_bundle():
    """One bundle stands on one node, where vLLM's `mp` executor starts the worker's processes."""
    assert bundle(EngineConfig(tensor_parallel=4, cpus_per_worker=2), "cuda") == {"CPU": 2, "GPU": 4}
    assert bundle(EngineConfig(tensor_parallel=4), "cpu") == {"CPU": 1}


def test_the_processes_of_a_tensor_parallel_worker_share_the_cores_too(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [share_all_cores(ClusterConfig(), EngineConfig(workers=w, tensor_parallel=t)).threads for w, t in ((1, 2), (2, 2), (4, 4))] == [
        4,
        2,
        1,
    ]
    assert share_all_cores(ClusterConfig(), LearnerConfig(workers=2)).threads == 4


def test_workers_find_the_programs_beside_their_python():
    """DeepSpeed builds the offloaded optimizer with ninja, which stands beside the python of the virtual environment alone."""
    path = worker_environment(2)["PATH"]
    assert path.split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert shutil.which("ninja", path=path) == str(Path(sys.executable).parent / "ninja")


def test_nccl_is_refused_without_gpus_and_chosen_with_them():
    with pytest.raises(InputError, match="rollout.weight_transfer: nccl moves weights between GPUs and this run has none"):
        weight_transfer(RolloutConfig(weight_transfer="nccl"), "cpu")
    chosen = {(c, d): weight_transfer(RolloutConfig(weight_transfer=c), d) for c in ("auto", "host_memory") for d in ("cpu", "cuda")}
    assert chosen == {
        ("auto", "cpu"): "host_memory", ("auto", "cuda"): "nccl",
        ("host_memory", "cpu"): "host_memory", ("host_memory", "cuda"): "host_memory",
    }  # fmt: skip
    assert weight_transfer(RolloutConfig(weight_transfer="nccl"), "cuda") == "nccl"


@pytest.mark.parametrize(("workers", "tensor_parallel"), [(1, 1), (3, 1), (2, 4)])
def test_every_device_has_a_rank_of_its_own_in_the_nccl_group(workers, tensor_parallel):
    channel = NcclChannel("10.0.0.1", 1234, workers, tensor_parallel, 2**20)
    infos = [channel.engine_info(worker) for worker in range(workers)]
    ranks = [info["rank_offset"] + within for info in infos for within in range(tensor_parallel)]
    assert [0, *ranks] == list(range(channel.world_size))  # 0 is the learner
    assert {info["world_size"] for info in infos} == {1 + workers * tensor_parallel}


@pytest.mark.slow
def test_vllm_reads_what_engines_are_told():
    """vLLM's own parsing of the dictionary, and our engine under its own name in vLLM's registry."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferEngine, NCCLWeightTransferInitInfo

    from actors.engine.plugin import NCCL_TRANSFER, register

    register()
    engine = WeightTransferEngineFactory._registry[NCCL_TRANSFER]()
    assert issubclass(engine, NCCLWeightTransferEngine)
    told = NCCLWeightTransferInitInfo(**NcclChannel("10.0.0.1", 1234, 2, 2, 2**20).engine_info(1))
    sender = NCCLTrainerInitInfo("10.0.0.1", 1234, 5, packed=True, packed_buffer_size_bytes=2**20, rank=0)
    for name in ("packed", "packed_buffer_size_bytes", "packed_num_buffers", "world_size", "master_address", "master_port"):
        assert getattr(told, name) == getattr(sender, name)
    assert told.rank_offset == 3


def test_roles_that_compute_at_the_same_time_divide_the_cores():
    roles = {"rollout": RolloutConfig(workers=2), "teacher": EngineConfig(), "learner": LearnerConfig(workers=2)}
    shares = divide_cores(ClusterConfig(), roles, range(8))
    assert {name: share.cores for name, share in shares.items()} == {
        "rollout": ((0,), (1,)), "teacher": ((2, 3),), "learner": ((4, 5), (6, 7)),
    }  # fmt: skip
    assert [shares[name].threads for name in roles] == [1, 2, 2]
    assert divide_cores(ClusterConfig(threads_per_worker=3), roles, range(8))["teacher"].threads == 3
    few = divide_cores(ClusterConfig(), roles, (4, 6))  # fewer cores than roles, in a container that was given these two
    assert {name: share.cores for name, share in few.items()} == {"rollout": ((4,), (4,)), "teacher": ((4,),), "learner": ((6,), (6,))}
    assert {core for share in divide_cores(ClusterConfig(), roles, (5,)).values() for cores in share.cores for core in cores} == {5}
