"""Where processes stand: the Ray cluster of a run, and what each worker of a role may use."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.config import ClusterConfig, EngineConfig, LearnerConfig
from minirl.errors import InputError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextmanager
def cluster(logical_cpus: int, object_store_bytes: int) -> Iterator[None]:
    """A Ray cluster for the run: the one at RAY_ADDRESS, or one of our own that ends with the block."""
    terminated = signal.getsignal(signal.SIGTERM)  # Ray puts a handler of its own in its place
    address = os.environ.get("RAY_ADDRESS")
    own = {"num_cpus": logical_cpus, "object_store_memory": object_store_bytes, "include_dashboard": False}
    try:
        # local: never one that somebody else's `ray start` left on this machine
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else own))
    except ConnectionError:
        raise InputError(
            f"the Ray cluster at RAY_ADDRESS={address} cannot be reached; unset it to start one here, or, if that cluster asks for a "
            "token, set RAY_AUTH_MODE=token"
        ) from None
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        ray.shutdown()


def device_of(config: ClusterConfig) -> str:
    """cpu or cuda, as configured or as the cluster has it."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if config.device == "cuda" and not gpus:
        raise InputError("cluster.device is cuda but the Ray cluster has no GPU; set cluster.device: cpu or add a GPU node")
    if config.device == "auto":
        return "cuda" if gpus else "cpu"
    return config.device


def bundle(config: EngineConfig | LearnerConfig, device: str) -> dict[str, float]:
    """What one worker reserves. A tensor-parallel engine is one bundle, so it stands on one node."""
    devices = getattr(config, "tensor_parallel", 1)
    reserved: dict[str, float] = {"CPU": config.cpus_per_worker}
    return reserved | {"GPU": devices} if device == "cuda" else reserved


@dataclass(frozen=True)
class CoreShare:
    """What the workers of a role may use of a machine's cores. threads: of each process; cores: of each worker, None for all."""

    threads: int
    cores: tuple[tuple[int, ...], ...] | None = None


def share_all_cores(config: ClusterConfig, role: EngineConfig | LearnerConfig) -> CoreShare:
    """For roles that take turns: the workers of one share all cores."""
    processes = role.workers * getattr(role, "tensor_parallel", 1)
    return CoreShare(config.threads_per_worker or max(1, (os.cpu_count() or 1) // processes))


def divide_cores(config: ClusterConfig, roles: dict[str, EngineConfig | LearnerConfig], cores: Sequence[int]) -> dict[str, CoreShare]:
    """For roles that compute at the same time (`max_staleness` above 0 on a CPU): half of the cores for the learner, the rest for the
    other two, which share it where it is a single one. Each worker is kept on cores of its own where there are enough.
    """
    first = max(1, len(cores) - len(cores) // 2)
    engines, learner = cores[:first], cores[first:] or cores
    middle = -(-len(engines) // 2)
    own = {"rollout": engines[:middle], "teacher": engines[middle:] or engines, "learner": learner}
    return {name: _dealt(config, role, own[name]) for name, role in roles.items()}


def _dealt(config: ClusterConfig, role: EngineConfig | LearnerConfig, cores: Sequence[int]) -> CoreShare:
    each = max(1, len(cores) // role.workers)
    dealt = tuple(tuple(cores[(worker * each + i) % len(cores)] for i in range(each)) for worker in range(role.workers))
    return CoreShare(config.threads_per_worker or max(1, each // getattr(role, "tensor_parallel", 1)), dealt)


def worker_environment(threads: int) -> dict[str, str]:
    """Environment of every worker process."""
    beside_python = str(Path(sys.executable).parent)  # ninja, with which DeepSpeed builds the optimizer of learner.offload_optimizer
    return {
        "OMP_NUM_THREADS": str(threads),
        "KMP_BLOCKTIME": "0",  # idle threads of one role must not spin while another computes
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "10000",  # a fraction of a millisecond: parallel parts follow one another fast, and then the core is free
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": beside_python + os.pathsep + os.environ.get("PATH", os.defpath),
    }
