"""Groups of real Ray processes: every way to fail is one clear error, and nothing outlives `stop`."""

import contextlib
import os
import subprocess
import time

import psutil
import pytest

from actors.config import ClusterConfig, LearnerConfig
from actors.groups.base import Group
from actors.groups.placement import bundle, share_all_cores, worker_environment
from minirl.errors import InputError, RunError

pytestmark = pytest.mark.slow


class Worker:
    """Does as it is told. broken: raises in its constructor."""

    def __init__(self, index: int, broken: Exception | None = None):
        self.index = index
        if broken:
            raise broken

    def whoami(self, greeting: str) -> tuple[str, int, int]:
        return greeting, self.index, os.getpid()

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def fail(self, index: int, error: Exception) -> int:
        """Raise on one worker; the others return."""
        if index == self.index:
            raise error
        return self.index

    def fail_beside_one_that_waits(self, index: int, error: Exception) -> None:
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
    """Starts groups of `Worker`s; those that are left are stopped."""
    started: list[Group] = []

    def group_of(workers: int = 2, *, cpus: float = 1, broken: dict[int, Exception] | None = None, **limits) -> Group:
        limits = {"start_timeout_s": 60.0, "step_timeout_s": 30.0} | limits
        group = Group(
            "rollout",
            Worker,
            lambda index: {"index": index, "broken": (broken or {}).get(index)},
            workers=workers,
            bundle={"CPU": cpus},
            environment=worker_environment(3),
            **limits,
        )
        started.append(group)
        return group

    try:
        yield group_of
    finally:
        for group in started:
            group.stop()


@pytest.fixture
def group_of(ray_cluster):
    with groups() as group_of:
        yield group_of


@pytest.fixture
def group(group_of):
    """A group of the test's own, to be broken."""
    group = group_of()
    group.wait_started()
    return group


@pytest.fixture(scope="module")
def standing(ray_cluster):
    """A group for tests that leave it as it was."""
    with groups() as group_of:
        group = group_of()
        group.wait_started()
        yield group


def gone(pids: list[int], seconds: float = 20) -> bool:
    """Whether all processes end within so many seconds."""
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_call_reaches_every_worker_in_a_process_of_its_own(standing):
    answers = standing.call("whoami", "hello")
    assert [answer[:2] for answer in answers] == [("hello", 0), ("hello", 1)]
    assert len({pid for *_, pid in answers} | {os.getpid()}) == 3
    assert standing.call("environment", "OMP_NUM_THREADS") == ["3", "3"]


# --- failures ---


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_what_a_worker_says_on_purpose_arrives_as_it_was_said(standing, kind):
    with pytest.raises(kind, match="^the head is wrong; check it$"):
        standing.call("fail", 1, kind("the head is wrong; check it"))
    assert standing.call("whoami", "still here")[0][0] == "still here"


def test_any_other_error_names_role_worker_and_phase(standing):
    with pytest.raises(RunError) as caught:
        standing.call("fail", 1, ValueError("boom"), phase="sample")
    assert str(caught.value).splitlines()[0] == "rollout worker 1 failed in `sample`: ValueError: boom"
    assert "in fail" in str(caught.value) and "\x1b" not in str(caught.value), "where it happened belongs to it"


def test_a_worker_that_dies_is_named(group):
    with pytest.raises(RunError, match="^rollout worker 1 died in `publish`: "):
        group.call("die", 1, phase="publish")


def test_a_worker_that_hangs_is_named_when_its_time_is_up(group):
    began = time.monotonic()
    with pytest.raises(RunError, match=r"^rollout worker 1 did not finish `score` within 1 s; .*raise cluster.step_timeout_s$"):
        group.call("hang", 1, phase="score", timeout_s=1.0)
    assert time.monotonic() - began < 5


def test_the_deadline_of_a_step_is_the_groups_own(group_of):
    group = group_of(1, step_timeout_s=0.5)
    group.wait_started()
    with pytest.raises(RunError, match="within 0.5 s"):
        group.call("hang", 0)


def test_a_failure_is_reported_while_another_worker_still_waits(group):
    began = time.monotonic()
    with pytest.raises(RunError, match="rollout worker 1 failed"):
        group.call("fail_beside_one_that_waits", 1, ValueError("boom"))
    assert time.monotonic() - began < 10


def test_a_worker_that_does_not_start_is_named(group_of):
    group = group_of(broken={1: ValueError("no memory")})
    with pytest.raises(RunError) as caught:
        group.wait_started()
    assert str(caught.value).splitlines()[0] == "rollout worker 1 failed in `start`: ValueError: no memory"


def test_what_a_constructor_says_on_purpose_arrives_as_it_was_said(group_of):
    group = group_of(broken={0: InputError("the model reads at most 8 tokens; lower the limit")})
    with pytest.raises(InputError, match="^the model reads at most 8 tokens; lower the limit$"):
        group.wait_started()


# --- the end ---


def test_nothing_outlives_stop(group_of):
    group = group_of(cpus=5)
    group.wait_started()
    pids = [pid for *_, pid in group.call("whoami", "")] + group.call("spawn")
    group.workers[0].hang.remote(0)  # also one that is in the middle of something
    assert all(alive(pid) for pid in pids)
    group.stop()
    assert gone(pids)
    group_of(cpus=5, start_timeout_s=10.0)  # of the cluster's 16: refused if the first one's place was not given back


def test_stop_after_a_death_and_stop_twice(group):
    with pytest.raises(RunError):
        group.call("die", 0)
    group.stop()
    group.stop()


# --- placement ---


@pytest.mark.parametrize(("workers", "cpus"), [(40, 1), (1, 17)])
def test_a_group_that_the_cluster_cannot_hold_is_refused(group_of, workers, cpus):
    with pytest.raises(InputError) as caught:
        group_of(workers, cpus=cpus, start_timeout_s=2.0)
    sentence = f"the Ray cluster has no room for the rollout group ({workers} x {cpus} CPU); lower rollout.workers or add nodes"
    assert str(caught.value) == sentence
    after = group_of(1)
    after.wait_started()


def test_what_a_worker_reserves():
    assert bundle(LearnerConfig(cpus_per_worker=3), "cpu") == {"CPU": 3}
    assert bundle(LearnerConfig(), "cuda") == {"CPU": 1, "GPU": 1}


def test_threads_are_shared_out_among_the_workers_of_a_role(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [share_all_cores(ClusterConfig(), LearnerConfig(workers=n)).threads for n in (1, 2, 3, 20)] == [8, 4, 2, 1]
    assert share_all_cores(ClusterConfig(threads_per_worker=5), LearnerConfig(workers=2)).threads == 5
