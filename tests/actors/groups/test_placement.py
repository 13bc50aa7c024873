"""Tests of placement: the Ray cluster that a run uses, what a worker reserves, its cores, and the ranks of the NCCL group."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.config import EngineConfig, LearnerConfig, RolloutConfig
from actors.groups.placement import bundle, cluster
from actors.weights.nccl_channel import NcclChannel
from actors.workers.rollout import weight_transfer
from minirl.errors import InputError
from tests.deadlines import deadline, wait_until

# Runs in a separate process, because the test suite has a cluster in this one. Prints the cluster's address and number of CPUs as JSON.
RUN = """
import json, ray
from actors.groups.nodes import choose_device, usable_nodes
from actors.groups.placement import cluster
from minirl.errors import InputError
report = {}
try:
    with cluster(3, 2**27):
        report = {"address": ray.get_runtime_context().gcs_address, "cpus": ray.cluster_resources()["CPU"]}
        report["device"], _ = choose_device("auto", usable_nodes(60))
        choose_device("cuda", usable_nodes(60))
except InputError as error:
    report["refused"] = str(error)
print(json.dumps(report | {"running": ray.is_initialized()}))
"""


@pytest.fixture
def machine() -> Iterator[dict[str, str]]:
    """The environment of a machine on which Ray finds no running cluster. Clusters started in it require a token."""
    with tempfile.TemporaryDirectory(prefix="r") as directory:  # short, since Ray creates sockets in it, whose paths have a length limit
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        yield inherited | {"RAY_TMPDIR": directory, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


@contextlib.contextmanager
def other_cluster(machine: dict[str, str]) -> Iterator[str]:
    """A cluster of another user, started with `ray start --head` and stopped at the end of the block. Yields its address."""
    command = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--port=0", "--num-cpus=5", "--object-store-memory=134217728",
        "--include-dashboard=false", "--disable-usage-stats",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=machine, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address_file = Path(machine["RAY_TMPDIR"]) / "ray" / "ray_current_cluster"
    try:
        assert wait_until(address_file.is_file, 10)
        yield address_file.read_text().strip()
    finally:
        process.terminate()
        process.wait(timeout=deadline(6))


def run_on(machine: dict[str, str], **variables: str) -> dict:
    process = subprocess.run([sys.executable, "-c", RUN], env=machine | variables, capture_output=True, text=True, timeout=deadline(15))
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_starts_a_new_cluster_beside_another_and_joins_the_one_at_ray_address(machine):
    with other_cluster(machine) as address:
        started = run_on(machine, RAY_ADDRESS="")
        assert started["address"] != address
        assert started["cpus"] == 3
        for _ in range(2):  # the end of the first run does not stop the cluster
            attached = run_on(machine, RAY_ADDRESS=address)
            assert (attached["address"], attached["cpus"]) == (address, 5)
        without_token = run_on(machine, RAY_ADDRESS=address, RAY_AUTH_MODE="disabled", RAY_NUM_REDIS_GET_RETRIES="2")
    for report in (started, attached):
        assert report["device"] == "cpu"
        assert report["refused"].startswith("cluster.device is cuda but the Ray cluster has no GPU")
        assert not report["running"]
    assert without_token["refused"].startswith(f"the Ray cluster at RAY_ADDRESS={address} listens but does not accept this command with")


RAY_FAILURES = {
    "socket path": (
        OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /a\nmore"),
        "set RAY_TMPDIR",
    ),
    "no directory": (NotADirectoryError(20, "Not a directory", "/etc/passwd/ray"), "Not a directory: '/etc/passwd/ray'; set RAY_TMPDIR"),
    "disk": (OSError(28, "No space left on device"), "No space left on device; set RAY_TMPDIR"),
    "ports": (
        RuntimeError("\x1b[36mthe raylet died\x1b[0m\ntrace"),
        "with a new cluster on this machine: the raylet died;",
    ),
    "no words": (ValueError(), "with a new cluster on this machine: ValueError;"),
}


@pytest.mark.parametrize(("failure", "sentence"), RAY_FAILURES.values(), ids=RAY_FAILURES)
def test_ray_that_does_not_start_is_one_sentence_with_its_first_line(monkeypatch, failure, sentence):
    def fails(**arguments):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise failure

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", fails)
    monkeypatch.setattr(ray, "shutdown", lambda: stopped.append(True))
    stopped, handler = [], signal.getsignal(signal.SIGTERM)
    with pytest.raises(InputError) as caught, cluster(1, 2**27):
        pass
    assert sentence in str(caught.value) and "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert stopped and signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.slow
def test_a_directory_too_long_for_rays_sockets(machine, tmp_path):
    directory = tmp_path / ("x" * 100)
    directory.mkdir()
    report = run_on(machine, RAY_TMPDIR=str(directory))
    assert report == {"refused": report["refused"], "running": False}
    assert "AF_UNIX path length" in report["refused"] and "set RAY_TMPDIR to a short one" in report["refused"]


def test_a_tensor_parallel_worker_is_one_bundle():
    """Ray places a bundle on one node, and vLLM's `mp` executor starts all processes of a worker on one node."""
    assert bundle(EngineConfig(tensor_parallel=4, cpus_per_worker=2), "cuda") == {"CPU": 2, "GPU": 4}
    assert bundle(EngineConfig(tensor_parallel=4), "cpu") == {"CPU": 1}


def test_what_a_learner_reserves():
    assert bundle(LearnerConfig(cpus_per_worker=3), "cpu") == {"CPU": 3}
    assert bundle(LearnerConfig(), "cuda") == {"CPU": 1, "GPU": 1}


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
def test_every_device_has_a_different_rank_in_the_nccl_group(workers, tensor_parallel):
    channel = NcclChannel("10.0.0.1", 1234, workers, tensor_parallel, 2**20)
    infos = [channel.engine_info(worker) for worker in range(workers)]
    ranks = [info["rank_offset"] + within for info in infos for within in range(tensor_parallel)]
    assert [0, *ranks] == list(range(channel.world_size))  # 0 is the learner
    assert {info["world_size"] for info in infos} == {1 + workers * tensor_parallel}


@pytest.mark.slow
def test_vllm_accepts_the_engines_settings():
    """vLLM parses `engine_info`, and its registry holds our transfer engine under our name."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferEngine, NCCLWeightTransferInitInfo

    from actors.engine.plugin import NCCL_TRANSFER, register

    register()
    engine = WeightTransferEngineFactory._registry[NCCL_TRANSFER]()
    assert issubclass(engine, NCCLWeightTransferEngine)
    engine_info = NCCLWeightTransferInitInfo(**NcclChannel("10.0.0.1", 1234, 2, 2, 2**20).engine_info(1))
    sender = NCCLTrainerInitInfo("10.0.0.1", 1234, 5, packed=True, packed_buffer_size_bytes=2**20, rank=0)
    for name in ("packed", "packed_buffer_size_bytes", "packed_num_buffers", "world_size", "master_address", "master_port"):
        assert getattr(engine_info, name) == getattr(sender, name)
    assert engine_info.rank_offset == 3


def test_an_address_at_which_nobody_listens_is_refused_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"nobody listens at 127\.0\.0\.1:1 .*unset RAY_ADDRESS"), cluster(1, 10**8):
        pytest.fail("there is no cluster")
