"""Workers that sleep instead of computing, and groups that simulate many such workers in few processes.

Ray workers, groups and the object store are those of a real run. A process holds many simulated workers, and each has its own thread there.
So the calls of one worker run one after the other, and those of different workers run at the same time, as on separate devices. The driver
has one handle for each simulated worker and calls it like a real one.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import numpy as np
import ray
import torch

from actors.config import ClusterConfig, LearnerConfig, LearnerSetup, RolloutConfig, TeacherConfig
from actors.groups.base import Group
from actors.groups.collection import Collection
from actors.groups.learner_group import LearnerGroup
from actors.groups.rollout_group import RolloutGroup
from actors.groups.teacher_group import TeacherGroup
from actors.request_queue import PositionedRequest, QueuedRequests
from actors.weights.packed import PackedWeights, pack
from actors.workers.ray_workers import LearnerRayWorker, RolloutRayWorker, TeacherRayWorker
from minirl.training.inputs import OnPolicyItem
from minirl.training.update import UpdateStep
from minirl.types import Rollout, TeacherScores, TokenSequence

THREADS = 256  # the most workers that one process can simulate


@dataclass(frozen=True)
class SleepTimes:
    """Seconds of one worker's work, and the shapes of its results.

    sampling: seconds of the longest response (max_response_tokens); all responses of a call are sampled at the same time.
    scoring, learning: seconds of one token. loading: seconds of one bucket of weights. hidden: the size of a teacher's hidden state.
    bucket_bytes, buckets: the size of a bucket, and the number of buckets in one version of the weights.
    """

    sampling: float
    scoring: float
    learning: float
    loading: float
    hidden: int
    bucket_bytes: int
    buckets: int


@dataclass(frozen=True)
class RecordedCall:
    """A call in the journal of its worker. submitted, started, ended: monotonic seconds; the driver submits the call."""

    worker: int
    method: str
    submitted: float
    started: float
    ended: float


class SleepingWorker:
    """Mixin of a Ray worker: runs the calls of many simulated workers, each in its own thread, and keeps a journal of them."""

    def configure(self, sleep_times: SleepTimes) -> None:
        self.sleep_times, self.journal, self.thread_state = sleep_times, [], threading.local()

    def take_journal(self) -> list[RecordedCall]:
        """The calls since the last `take_journal`."""
        journal, self.journal = self.journal, []
        return journal

    def call(self, submitted: float, worker: int, method: str, *arguments: Any) -> Any:
        """Run a method for one simulated worker and return its result."""
        started, self.thread_state.worker = time.monotonic(), worker
        result = getattr(self, method)(*arguments)
        self.journal.append(RecordedCall(worker, method, submitted, started, time.monotonic()))
        return result

    def stream(self, submitted: float, worker: int, method: str, *arguments: Any) -> Iterator[Any]:
        """Run a generator method for one simulated worker."""
        started, self.thread_state.worker = time.monotonic(), worker
        yield from getattr(self, method)(*arguments)
        self.journal.append(RecordedCall(worker, method, submitted, started, time.monotonic()))


class SleepingRolloutWorker(SleepingWorker, RolloutRayWorker):
    def __init__(self, **engine: Any):
        pass

    def begin_weights(self) -> None:
        pass

    def load_bucket(self, bucket: PackedWeights, expected_checksum: int) -> None:
        time.sleep(self.sleep_times.loading)

    def finish_weights(self, version: int) -> None:
        pass

    def sample_each(
        self,
        requests: list[PositionedRequest],
        queued: QueuedRequests | None = None,
        *,
        teacher_share: float,
        max_response_tokens: int,
        weight_version: int,
        with_scores: bool = False,
    ) -> Iterator[list[tuple[int, Rollout]]]:
        """Yields responses as they end. Lengths are uniform and depend on the seeds; one response of each call has the full length.

        Queued requests begin when they have come, all long before the first response ends.
        """
        now = time.monotonic()
        lengths = [max_response_tokens // 4 + request.seed % (3 * max_response_tokens // 4) for _, request in requests]
        lengths[requests[-1][1].seed % len(lengths)] = max_response_tokens
        begun = [(now, length, pair) for length, pair in zip(lengths, requests, strict=True)]
        while queued and queued.are_left and len(begun) < queued.share:
            for pair in queued.take(len(begun)):
                begun.append((time.monotonic(), max_response_tokens // 4 + pair[1].seed % (3 * max_response_tokens // 4), pair))
            if queued.pending:
                ray.wait([queued.pending])
        per_token = self.sleep_times.sampling / max_response_tokens
        ends = ((begin + per_token * length, length, pair) for begin, length, pair in begun)
        for end, length, (position, request) in sorted(ends, key=itemgetter(0)):
            sleep_until(end)
            yield [
                (
                    position,
                    Rollout(
                        prompt_tokens=request.prompt_tokens,
                        response_tokens=np.full(length, 7),
                        behavior_logprobs=np.full(length, -1.0, np.float32),
                        truncated=length == max_response_tokens,
                        weight_version=weight_version,
                        prompt_index=request.prompt_index,
                        sample_index=request.sample_index,
                    ),
                )
            ]


class SleepingTeacherWorker(SleepingWorker, TeacherRayWorker):
    temperature = 1.0

    def __init__(self, **engine: Any):
        pass

    def score(self, sequences: list[TokenSequence], temperatures: list[float] | None = None) -> list[TeacherScores]:
        time.sleep(self.sleep_times.scoring * sum(len(sequence.tokens) for sequence in sequences))
        rows = [sequence.targets for sequence in sequences]
        floats = [np.zeros(count, np.float32) for count in rows]
        return [TeacherScores(f, f, np.zeros((len(f), self.sleep_times.hidden), np.uint16)) for f in floats]


class SleepingLearnerWorker(SleepingWorker, LearnerRayWorker):
    def open_rendezvous(self) -> tuple[str, int]:
        return "", 0

    def start(self, rendezvous: tuple[str, int], setup: LearnerSetup) -> list[str]:
        return []

    def configure(self, sleep_times: SleepTimes) -> None:
        super().configure(sleep_times)
        self.learner = SleepingLearner(sleep_times, self.thread_state)


@dataclass(frozen=True)
class SleepingLearner:
    """Replaces `actors.workers.learner.Learner`. thread_state: its `worker` is the index of the worker that is called."""

    sleep_times: SleepTimes
    thread_state: threading.local

    def update(self, step: UpdateStep, on_policy: list[list[OnPolicyItem]], supervised: list[list[Any]]) -> dict[str, float]:
        rollouts = [item.rollout for items in on_policy for item in items]
        time.sleep(self.sleep_times.learning * sum(rollout.summary.tokens for rollout in rollouts))
        names = ("policy_gradient", "single_step", "reverse_kl", "reward", "importance_ratio", "clipped", "behavior_gap", "teacher_gap_max")
        return dict.fromkeys(names, 0.0) | {"response_tokens": sum(r.summary.response_tokens for r in rollouts), "grad_norm": 1.0}

    def packed_weights(self, dtype: str) -> Iterator[PackedWeights]:
        if self.thread_state.worker > 0:
            return
        layers = [torch.zeros(self.sleep_times.bucket_bytes // 2, dtype=torch.bfloat16) for _ in range(self.sleep_times.buckets)]
        yield from pack(((f"layer.{number}", layer) for number, layer in enumerate(layers)), self.sleep_times.bucket_bytes)


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


@dataclass(frozen=True)
class SimulatedWorker:
    """The handle of one simulated worker; groups call it like a Ray actor. thread: the concurrency group in its process."""

    process: Any
    worker: int
    thread: str

    def __getattr__(self, method: str) -> "RemoteMethod":
        return RemoteMethod(self, method)


@dataclass(frozen=True)
class RemoteMethod:
    """A method of a simulated worker, with Ray's `options` and `remote`."""

    handle: SimulatedWorker
    name: str
    ray_options: dict[str, Any] = field(default_factory=dict)

    def options(self, **ray_options: Any) -> "RemoteMethod":
        return replace(self, ray_options=ray_options)

    def remote(self, *arguments: Any) -> Any:
        process = self.handle.process
        method = process.stream if self.ray_options.get("num_returns") == "streaming" else process.call
        method = method.options(concurrency_group=self.handle.thread, **self.ray_options)
        return method.remote(time.monotonic(), self.handle.worker, self.name, *arguments)


class SimulatedGroup(Group):
    """A group that simulates any number of workers in its processes."""

    processes: list[Any]

    def remote_class(self, worker_class: type) -> Any:
        return ray.remote(concurrency_groups={f"worker{number}": 1 for number in range(THREADS)})(worker_class)

    def simulate_workers(self, workers: int, sleep_times: SleepTimes) -> None:
        """Simulate this number of workers from now on, with these sleep times."""
        self.processes = getattr(self, "processes", self.workers)
        count = min(len(self.processes), workers)  # processes in use
        assert -(-workers // count) <= THREADS
        self.workers = [SimulatedWorker(self.processes[w % count], w, f"worker{w // count}") for w in range(workers)]
        self.config = self.config.model_copy(update={"workers": workers})
        ray.get([process.configure.remote(sleep_times) for process in self.processes])

    def take_journal(self) -> list[RecordedCall]:
        return [call for calls in ray.get([process.take_journal.remote() for process in self.processes]) for call in calls]

    def stop(self) -> None:
        self.workers = getattr(self, "processes", self.workers)
        super().stop()


class SleepingRolloutGroup(SimulatedGroup, RolloutGroup):
    """collections: all that were begun since the last `simulate_workers`."""

    worker_class = SleepingRolloutWorker
    collections: list[Collection]

    def begin(self, *arguments: Any, **options: Any) -> Collection:
        self.collections.append(super().begin(*arguments, **options))
        return self.collections[-1]

    def simulate_workers(self, workers: int, sleep_times: SleepTimes) -> None:
        super().simulate_workers(workers, sleep_times)
        self.collections = []


class SleepingTeacherGroup(SimulatedGroup, TeacherGroup):
    worker_class = SleepingTeacherWorker


class SleepingLearnerGroup(SimulatedGroup, LearnerGroup):
    worker_class = SleepingLearnerWorker


def start_groups(
    processes: dict[str, int], tokens_per_call: int, cluster: ClusterConfig
) -> tuple[SleepingRolloutGroup, SleepingTeacherGroup, SleepingLearnerGroup]:
    """Start the three groups; `simulate_workers` then sets their numbers of workers.

    processes: the number of processes of each group. tokens_per_call: the tokens that a teacher scores in one call.
    """
    config = LearnerConfig(workers=processes["learner"], tokens_per_microbatch=tokens_per_call)
    setup = LearnerSetup(model="", teacher="", vocabulary=0, config=config, device="cpu", threads=1, seed=0)
    groups = (
        SleepingRolloutGroup(RolloutConfig(workers=processes["rollout"]), cluster, "cpu"),
        SleepingTeacherGroup(TeacherConfig(workers=processes["teacher"], model="none", micro_batch_tokens=tokens_per_call), cluster, "cpu"),
        SleepingLearnerGroup(setup, cluster),
    )
    for group in groups:
        group.wait_started()
    return groups
