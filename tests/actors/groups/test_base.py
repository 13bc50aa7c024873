"""Tests of Group with real Ray processes: every failure is one clear error, and `stop` leaves no process behind."""

import contextlib
import os
import subprocess
import time

import psutil
import pytest

from actors.config import ClusterConfig, EngineConfig
from actors.environment import worker_environment
from actors.groups.base import Group
from actors.groups.placement import Places
from minirl.errors import InputError, RunError
from tests.deadlines import deadline, wait_until

pytestmark = pytest.mark.slow


class Worker:
    """A worker that fails, dies or hangs on request. broken: an error for the constructor to raise."""

    def __init__(self, index: int, broken: Exception | None = None):
        self.index = index
        if broken:
            raise broken

    def whoami(self, greeting: str) -> tuple[str, int, int]:
        return greeting, self.index, os.getpid()

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def fail(self, index: int, error: Exception) -> int:
        """Raises on the worker with this index; the others return."""
        if index == self.index:
            raise error
        return self.index

    def fail_while_the_others_wait(self, index: int, error: Exception) -> None:
        if index == self.index:
            raise error
        time.sleep(600)

    def die(self, index: int) -> None:
        if index == self.index:
            os._exit(7)

    def hang(self, index: int) -> None:
        if index == self.index:
            time.sleep(600)

    def spawn(self) -> int:
        return subprocess.Popen(["sleep", "600"]).pid


@contextlib.contextmanager
def groups():
    """Yields a function that starts groups of `Worker`s. Stops all of them at the end of the block."""
    started: list[Group] = []

    def start_group(workers: int = 2, *, cpus: float = 1, broken: dict[int, Exception] | None = None, **limits) -> Group:
        limits = {"start_timeout_s": deadline(20), "step_timeout_s": deadline(5)} | limits
        group = Group(
            "rollout",
            Worker,
            lambda index: {"index": index, "broken": (broken or {}).get(index)},
            places=Places("rollout", EngineConfig(workers=workers, cpus_per_worker=cpus), ClusterConfig(**limits), "cpu"),
            environment=lambda index: worker_environment("cpu", 3),
            **limits,
        )
        started.append(group)
        return group

    try:
        yield start_group
    finally:
        for group in started:
            group.stop()


@pytest.fixture
def start_group(ray_cluster):
    with groups() as start_group:
        yield start_group


@pytest.fixture
def group(start_group):
    """A new group for one test, which may break it."""
    group = start_group()
    group.wait_started()
    return group


@pytest.fixture(scope="module")
def shared_group(ray_cluster):
    """One group for all tests that leave it intact."""
    with groups() as start_group:
        group = start_group()
        group.wait_started()
        yield group


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_call_reaches_every_worker_in_a_separate_process(shared_group):
    answers = shared_group.call("whoami", "hello")
    assert [answer[:2] for answer in answers] == [("hello", 0), ("hello", 1)]
    assert len({pid for *_, pid in answers} | {os.getpid()}) == 3
    assert shared_group.call("environment", "OMP_NUM_THREADS") == ["3", "3"]


# --- failures ---


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_an_error_that_a_worker_raises_for_the_user_arrives_unchanged(shared_group, kind):
    with pytest.raises(kind, match="^the head is wrong; check it$"):
        shared_group.call("fail", 1, kind("the head is wrong; check it"))
    assert shared_group.call("whoami", "still here")[0][0] == "still here"


def test_any_other_error_names_role_worker_and_phase(shared_group):
    with pytest.raises(RunError) as error:
        shared_group.call("fail", 1, ValueError("boom"), phase="sample")
    assert str(error.value).splitlines()[0] == "rollout worker 1 failed in `sample`: ValueError: boom"
    assert "in fail" in str(error.value) and "\x1b" not in str(error.value), "the traceback is part of the message, without colors"


def test_a_worker_that_dies_is_named(group):
    with pytest.raises(RunError, match="^rollout worker 1 died in `publish`: "):
        group.call("die", 1, phase="publish")


def test_a_worker_that_hangs_is_named_when_its_time_is_up(group):
    began = time.monotonic()
    with pytest.raises(RunError, match=r"^rollout worker 1 did not finish `score` within 1 s; .*raise cluster.step_timeout_s$"):
        group.call("hang", 1, phase="score", timeout_s=1.0)
    assert time.monotonic() - began < deadline(3)


def test_a_start_that_takes_too_long_names_the_key_that_limits_it(start_group):
    group = start_group(1, start_timeout_s=0.01)
    with pytest.raises(RunError, match=r"^rollout worker 0 did not finish `start` within 0.01 s; .* raise cluster.start_timeout_s$"):
        group.wait_started()


def test_the_default_deadline_of_a_call_is_the_step_timeout_of_the_group(start_group):
    group = start_group(1, step_timeout_s=0.5)
    group.wait_started()
    with pytest.raises(RunError, match="within 0.5 s"):
        group.call("hang", 0)


def test_a_failure_is_reported_while_another_worker_still_waits(group):
    began = time.monotonic()
    with pytest.raises(RunError, match="rollout worker 1 failed"):
        group.call("fail_while_the_others_wait", 1, ValueError("boom"))
    assert time.monotonic() - began < deadline(3)


def test_a_worker_that_does_not_start_is_named(start_group):
    group = start_group(broken={1: ValueError("no memory")})
    with pytest.raises(RunError) as error:
        group.wait_started()
    assert str(error.value).splitlines()[0] == "rollout worker 1 failed in `start`: ValueError: no memory"


def test_an_error_that_a_constructor_raises_for_the_user_arrives_unchanged(start_group):
    group = start_group(broken={0: InputError("the model reads at most 8 tokens; lower the limit")})
    with pytest.raises(InputError, match="^the model reads at most 8 tokens; lower the limit$"):
        group.wait_started()


# --- the end ---


def test_stop_ends_every_process_and_frees_the_resources(start_group):
    group = start_group(cpus=5)
    group.wait_started()
    pids = [pid for *_, pid in group.call("whoami", "")] + group.call("spawn")
    group.workers[0].hang.remote(0)  # one worker is busy
    assert all(alive(pid) for pid in pids)
    group.stop()
    assert wait_until(lambda: not any(alive(pid) for pid in pids), 5)
    start_group(cpus=5, start_timeout_s=deadline(5))  # 10 of the cluster's 16 CPUs: refused if the first group still held its 10


def test_stop_after_a_death_and_stop_twice(group):
    with pytest.raises(RunError):
        group.call("die", 0)
    group.stop()
    group.stop()


# --- placement ---


@pytest.mark.parametrize(("workers", "cpus"), [(40, 1), (1, 17)])
def test_a_group_that_the_cluster_cannot_hold_is_refused(start_group, workers, cpus):
    with pytest.raises(InputError) as error:
        start_group(workers, cpus=cpus, start_timeout_s=2.0)
    message = f"the Ray cluster has no room for the rollout group ({workers} x {cpus} CPU); lower rollout.workers or add nodes"
    assert str(error.value) == message
    smaller_group = start_group(1)
    smaller_group.wait_started()
