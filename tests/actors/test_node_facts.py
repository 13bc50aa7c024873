"""What a node finds out about itself: cores under affinity and quota, native bfloat16, and GPUs that its installation can use."""

import os
from pathlib import Path

import pytest
import torch

from actors import node_facts
from actors.node_facts import cpu_has_bfloat16, cpu_quota


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def quota(tmp_path: Path, own_group: str, files: dict[str, str]) -> float | None:
    write(tmp_path, {"proc": own_group} | {f"sys/{name}": text for name, text in files.items()})
    return cpu_quota(tmp_path / "proc", tmp_path / "sys")


V2 = "0::/pod/container\n"
V1 = "5:memory:/pod\n4:cpuacct,cpu:/pod/container\n1:name=systemd:/pod\n"
QUOTAS = {
    "v2": (V2, {"pod/container/cpu.max": "150000 100000\n"}, 1.5),
    "v2, the group above is smaller": (V2, {"pod/container/cpu.max": "400000 100000\n", "pod/cpu.max": "200000 100000\n"}, 2.0),
    "v2, none": (V2, {"pod/container/cpu.max": "max 100000\n"}, None),
    "v2, a container's own root": ("0::/\n", {"cpu.max": "300000 100000\n"}, 3.0),
    "v1": (V1, {"cpu/pod/container/cpu.cfs_quota_us": "50000\n", "cpu/pod/container/cpu.cfs_period_us": "100000\n"}, 0.5),
    "v1, none": (V1, {"cpu/pod/container/cpu.cfs_quota_us": "-1\n", "cpu/pod/container/cpu.cfs_period_us": "100000\n"}, None),
    "v1, in a container whose root is its own group": (V1, {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
    "no cgroup files": (V2, {}, None),
    "another controller's files": ("5:memory:/pod\n", {"cpu/pod/cpu.cfs_quota_us": "1", "cpu/pod/cpu.cfs_period_us": "1"}, None),
}


@pytest.mark.parametrize(("own_group", "files", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_the_smallest_quota_of_the_groups_above_the_process(tmp_path, own_group, files, expected):
    assert quota(tmp_path, own_group, files) == expected


def test_no_proc_means_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "nothing", tmp_path) is None


@pytest.mark.parametrize(("limit", "usable"), [(None, 3), (64.0, 3), (2.9, 2), (0.5, 1)])
def test_usable_cores_are_those_of_the_affinity_within_the_quota(monkeypatch, limit, usable):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {7, 2, 4})
    monkeypatch.setattr(node_facts, "cpu_quota", lambda: limit)
    facts = node_facts.node_facts()
    assert (facts.cores, facts.usable_cores) == ((2, 4, 7), usable)


CAPABILITIES = {
    "avx512 without bfloat16": ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_tile": True}, False),
    "avx512_bf16": ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
    "amx_bf16": ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
    "arm": ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
    "arm with sve": ({"architecture": "aarch64", "sve_bf16": True}, True),
    "an old arm": ({"architecture": "aarch64", "neon": True}, False),
}


@pytest.mark.parametrize(("capabilities", "native"), CAPABILITIES.values(), ids=CAPABILITIES)
def test_native_bfloat16_of_a_cpu(monkeypatch, capabilities, native):
    """A capability of another architecture is missing from torch's answer."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert cpu_has_bfloat16() is native
    assert ("cpu" in node_facts.node_facts().bfloat16) is native


def installed(monkeypatch, *, torch_cuda: str | None, vllm: str | None, generations: list[int]) -> node_facts.NodeFacts:
    """The facts of a node with these builds and GPUs of these compute capabilities."""

    def version(name: str) -> str:
        assert name == "vllm"
        if vllm is None:
            raise node_facts.PackageNotFoundError(name)
        return vllm

    monkeypatch.setattr(node_facts, "version", version)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(generations))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(generations))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (generations[gpu], 0))
    return node_facts.node_facts()


def test_gpus_count_where_torch_and_vllm_can_compute_on_them(monkeypatch):
    facts = installed(monkeypatch, torch_cuda="12.8", vllm="0.32.0", generations=[9, 8])
    assert (facts.gpus, facts.gpu_problem, "cuda" in facts.bfloat16) == (2, None, True)
    facts = installed(monkeypatch, torch_cuda="12.8", vllm="0.32.0", generations=[9, 7])  # one of the GPUs is older than Ampere
    assert (facts.gpus, "cuda" in facts.bfloat16) == (2, False)
    for builds, words in (
        ({"torch_cuda": None, "vllm": "0.32.0"}, "is built for CPUs"),
        ({"torch_cuda": "12.8", "vllm": None}, "vLLM is built for CPUs"),
        ({"torch_cuda": "12.8", "vllm": "0.32.0+cpu"}, "vLLM is built for CPUs"),
    ):
        facts = installed(monkeypatch, **builds, generations=[9])
        assert facts.gpus == 0 and words in facts.gpu_problem and "cuda" not in facts.bfloat16
    facts = installed(monkeypatch, torch_cuda="12.8", vllm="0.32.0", generations=[])
    assert facts.gpus == 0 and "finds no GPU that works with its CUDA 12.8" in facts.gpu_problem
