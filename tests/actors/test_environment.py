"""The environment of worker processes: whole, from the cluster's device, whatever the driver has set for itself."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from actors.config import LearnerConfig, LearnerSetup
from actors.environment import DRIVER_ENVIRONMENT, worker_environment
from actors.groups import placement
from actors.groups.learner_group import LearnerGroup
from actors.workers import ray_workers
from actors.workers.ray_workers import LearnerRayWorker
from tests.actors.learners import CLUSTER


def test_workers_find_the_programs_in_the_directory_of_their_python():
    """DeepSpeed builds the offloaded optimizer with ninja, which is installed only in the virtual environment."""
    path = worker_environment("cpu", 2)["PATH"]
    assert path.split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert shutil.which("ninja", path=path) == str(Path(sys.executable).parent / "ninja")


def test_everything_that_the_driver_sets_for_itself_is_named_for_the_workers():
    """Workers inherit the driver's variables only where the driver starts Ray."""
    for device in ("cpu", "cuda"):
        assert DRIVER_ENVIRONMENT.keys() <= worker_environment(device, 1).keys()


def test_a_worker_on_cpus_sees_no_gpu_and_rays_choice_of_gpus_stands():
    assert worker_environment("cpu", 1)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment("cuda", 1)


def test_a_users_choice_to_stay_offline_reaches_workers_on_all_nodes(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert worker_environment("cpu", 1)["HF_HUB_OFFLINE"] == "1"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "HF_HUB_OFFLINE" not in worker_environment("cpu", 1)


class ProbeWorker(LearnerRayWorker):
    """A learner's worker that does not join other ranks, and reports what holds at that moment."""

    def start(self, rendezvous: tuple[str, int], setup: LearnerSetup) -> dict[str, str | bool]:
        report: dict[str, str | bool] = {}

        class Joined(Exception):
            pass

        def join(*arguments, device: str, **named) -> None:
            report.update(
                device=device,
                learner_imported="actors.workers.learner" in sys.modules,
                deepspeed_imported="deepspeed" in sys.modules,
                inherited=os.environ["DS_ACCELERATOR"],
                deterministic_flash_attention=os.environ["FLASH_ATTENTION_DETERMINISTIC"],
            )
            raise Joined

        ray_workers.join_process_group = join
        try:
            super().start(rendezvous, setup)
        except Joined:
            from deepspeed.accelerator import get_accelerator

            report["accelerator"] = get_accelerator()._name
        return report


class ProbeGroup(LearnerGroup):
    worker_class = ProbeWorker

    def reports(self) -> list[dict[str, str | bool]]:
        return self.get(self._start_calls, "start", self.start_timeout_s)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_learners_accelerator_is_the_clusters_device_and_not_the_drivers(ray_cluster, monkeypatch, device):
    """DeepSpeed keeps the accelerator that the environment names when it is first imported, so the learner's rank joins before that.

    On a machine without GPUs the worker of a "cuda" setup reserves a CPU instead, and ends before it would use a GPU.
    """
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(placement, "bundle", lambda config, device: {"CPU": 1})
    deterministic = device == "cuda"
    setup = LearnerSetup(
        model="none", teacher=None, vocabulary=2, config=LearnerConfig(), device=device, threads=1, seed=0, deterministic=deterministic
    )
    group = ProbeGroup(setup, CLUSTER)
    try:
        (report,) = group.reports()
    finally:
        group.stop()
    assert report == {
        "device": device, "learner_imported": False, "deepspeed_imported": False, "inherited": device, "accelerator": device,
        "deterministic_flash_attention": str(int(deterministic)),
    }  # fmt: skip
