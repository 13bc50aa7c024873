"""Placement: the Ray cluster of a run, and the CPUs, GPUs, cores and environment of each worker."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.config import ClusterConfig, EngineConfig, LearnerConfig
from minirl.errors import InputError, first_line

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextmanager
def cluster(logical_cpus: int, object_store_bytes: int) -> Iterator[None]:
    """Connects to the Ray cluster at RAY_ADDRESS, or starts one here. On exit, disconnects and stops a cluster that it started.

    Raises InputError, with Ray's own first line, if Ray does not start.
    """
    sigterm_handler = signal.getsignal(signal.SIGTERM)  # `ray.init` replaces it
    address = os.environ.get("RAY_ADDRESS")
    new_cluster = {"num_cpus": logical_cpus, "object_store_memory": object_store_bytes, "include_dashboard": False}
    try:
        # local: start a new cluster; do not join one that another `ray start` left on this machine
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else new_cluster))
    except Exception as error:  # Ray raises errors of many types, and what it had started until then would stay
        ray.shutdown()
        raise InputError(_why_ray_does_not_start(error, address)) from None
    finally:
        with suppress(ValueError):  # raised outside the main thread
            signal.signal(signal.SIGTERM, sigterm_handler)
    try:
        yield
    finally:
        ray.shutdown()


def _why_ray_does_not_start(error: Exception, address: str | None) -> str:
    if address and isinstance(error, ConnectionError):
        return (
            f"the Ray cluster at RAY_ADDRESS={address} cannot be reached; unset RAY_ADDRESS to start a cluster here, or set "
            "RAY_AUTH_MODE=token if that cluster requires a token"
        )
    line = first_line(error)
    if "AF_UNIX" in line:
        return (
            f"Ray's directory for sockets has too long a path ({line}); set RAY_TMPDIR to a short one such as /tmp, or shorten TMPDIR = "
            f"{os.environ.get('RAY_TMPDIR') or tempfile.gettempdir()}"
        )
    if isinstance(error, OSError):
        return f"Ray does not start: {line}; set RAY_TMPDIR to a directory that can be written and has room"
    joined = f"RAY_ADDRESS={address}" if address else "a new cluster on this machine"
    return f"Ray does not start with {joined}: {line}; look at Ray's logs under {os.environ.get('RAY_TMPDIR') or tempfile.gettempdir()}/ray"


def device_of(config: ClusterConfig) -> str:
    """The device of the run, "cpu" or "cuda". Raises InputError if cuda is configured and the cluster has no GPU."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if config.device == "cuda" and not gpus:
        raise InputError("cluster.device is cuda but the Ray cluster has no GPU; set cluster.device: cpu or add a GPU node")
    if config.device == "auto":
        return "cuda" if gpus else "cpu"
    return config.device


def bundle(config: EngineConfig | LearnerConfig, device: str) -> dict[str, float]:
    """The Ray resources that one worker reserves. A tensor-parallel engine is one bundle, so that all its devices are on one node."""
    devices = getattr(config, "tensor_parallel", 1)
    reserved: dict[str, float] = {"CPU": config.cpus_per_worker}
    return reserved | {"GPU": devices} if device == "cuda" else reserved


@dataclass(frozen=True)
class CoreShare:
    """The cores that a role's workers use on one machine. threads: of each process. cores: the core ids of each worker; None: all cores."""

    threads: int
    cores: tuple[tuple[int, ...], ...] | None = None


def share_all_cores(config: ClusterConfig, role: EngineConfig | LearnerConfig) -> CoreShare:
    """For roles that take turns: each role uses all cores, and its processes divide them."""
    processes = role.workers * getattr(role, "tensor_parallel", 1)
    return CoreShare(config.threads_per_worker or max(1, (os.cpu_count() or 1) // processes))


def divide_cores(config: ClusterConfig, roles: dict[str, EngineConfig | LearnerConfig], cores: Sequence[int]) -> dict[str, CoreShare]:
    """For roles that compute at the same time (`max_staleness` above 0 on a CPU): pins each role to its own part of the cores.

    The learner gets half of the cores. Rollout and teacher divide the other half, or share it if it is a single core. Each worker gets
    different cores if there are enough.
    """
    engine_count = max(1, len(cores) - len(cores) // 2)
    engines, learner = cores[:engine_count], cores[engine_count:] or cores
    middle = -(-len(engines) // 2)
    role_cores = {"rollout": engines[:middle], "teacher": engines[middle:] or engines, "learner": learner}
    return {name: _divide_among_workers(config, role, role_cores[name]) for name, role in roles.items()}


def _divide_among_workers(config: ClusterConfig, role: EngineConfig | LearnerConfig, cores: Sequence[int]) -> CoreShare:
    size = max(1, len(cores) // role.workers)  # cores of each worker
    worker_cores = tuple(tuple(cores[(worker * size + i) % len(cores)] for i in range(size)) for worker in range(role.workers))
    return CoreShare(config.threads_per_worker or max(1, size // getattr(role, "tensor_parallel", 1)), worker_cores)


def worker_environment(threads: int) -> dict[str, str]:
    """Environment variables of every worker process. threads: of its CPU kernels."""
    python_directory = str(Path(sys.executable).parent)  # holds ninja, which DeepSpeed needs to build its CPU optimizer
    return {
        "OMP_NUM_THREADS": str(threads),
        "KMP_BLOCKTIME": "0",  # idle threads of one role must not spin while another computes
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "10000",  # spin for a fraction of a millisecond between parallel regions, then release the core
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": python_directory + os.pathsep + os.environ.get("PATH", os.defpath),
    }
