"""Model workers that sleep instead of computing, and groups that have many of them in few processes.

Around the sleeping workers the shells, the groups and the object store are those of a run. A process holds many workers: each has a
thread of its own there, so that its calls follow one another and those of different workers go on at once, as on devices of their own.
The driver has a handle for each worker and can not tell the difference.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
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
from actors.weights.packed import PackedWeights, pack
from actors.workers.ray_workers import LearnerRayWorker, RolloutRayWorker, TeacherRayWorker
from minirl.training.update import OnPolicyItem, UpdateStep
from minirl.types import Rollout, SamplingRequest, TeacherScores, TokenSequence

THREADS = 256  # workers that a process can hold


@dataclass(frozen=True)
class Sleeps:
    """What the work of one worker takes, in seconds, and the shape of what it returns.

    sampling: of the longest response (max_response_tokens); all responses of a call are sampled at once. scoring, learning: of a token.
    loading: of one bucket of weights. hidden: numbers in a teacher state. bucket_bytes, buckets: of one version of the weights.
    """

    sampling: float
    scoring: float
    learning: float
    loading: float
    hidden: int
    bucket_bytes: int
    buckets: int


@dataclass(frozen=True)
class Call:
    """A call as its worker saw it: monotonic seconds at which the driver asked for it, it began and it ended."""

    worker: int
    method: str
    asked: float
    began: float
    ended: float


class Sleeper:
    """Mixed into a shell: answers in the name of many workers, and keeps a journal of it."""

    def set(self, sleeps: Sleeps) -> None:
        self.sleeps, self.journal, self.here = sleeps, [], threading.local()

    def take_journal(self) -> list[Call]:
        journal, self.journal = self.journal, []
        return journal

    def answer(self, asked: float, worker: int, method: str, *arguments: Any) -> Any:
        began, self.here.worker = time.monotonic(), worker
        result = getattr(self, method)(*arguments)
        self.journal.append(Call(worker, method, asked, began, time.monotonic()))
        return result

    def stream(self, asked: float, worker: int, method: str, *arguments: Any) -> Iterator[Any]:
        began, self.here.worker = time.monotonic(), worker
        yield from getattr(self, method)(*arguments)
        self.journal.append(Call(worker, method, asked, began, time.monotonic()))


class SleepingRollout(Sleeper, RolloutRayWorker):
    def __init__(self, **engine: Any):
        pass

    def begin_weights(self) -> None:
        pass

    def load_bucket(self, bucket: PackedWeights, expected_checksum: int) -> None:
        time.sleep(self.sleeps.loading)

    def finish_weights(self, version: int) -> None:
        pass

    def sample_each(
        self, requests: list[SamplingRequest], *, teacher_share: float, max_response_tokens: int, weight_version: int
    ) -> Iterator[list[tuple[int, Rollout]]]:
        """Lengths spread evenly at random by the requests' seeds, but for one response of each call that is as long as allowed."""
        began = time.monotonic()
        lengths = [max_response_tokens // 4 + request.seed % (3 * max_response_tokens // 4) for request in requests]
        lengths[requests[-1].seed % len(lengths)] = max_response_tokens
        for position in sorted(range(len(lengths)), key=lengths.__getitem__):
            length, request = lengths[position], requests[position]
            sleep_until(began + self.sleeps.sampling * length / max_response_tokens)
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


class SleepingTeacher(Sleeper, TeacherRayWorker):
    def __init__(self, **engine: Any):
        pass

    def score(self, sequences: list[TokenSequence]) -> list[TeacherScores]:
        time.sleep(self.sleeps.scoring * sum(len(sequence.tokens) for sequence in sequences))
        rows = [sequence.targets for sequence in sequences]
        floats = [np.zeros(count, np.float32) for count in rows]
        return [TeacherScores(f, f, np.zeros((len(f), self.sleeps.hidden), np.uint16)) for f in floats]


class SleepingLearner(Sleeper, LearnerRayWorker):
    def host(self) -> tuple[str, int]:
        return "", 0

    def start(self, address: str, port: int, setup: LearnerSetup) -> None:
        pass

    def set(self, sleeps: Sleeps) -> None:
        super().set(sleeps)
        self.learner = Learner(sleeps, self.here)


@dataclass(frozen=True)
class Learner:
    """In the place of `actors.workers.learner.Learner`. here: whose call this is."""

    sleeps: Sleeps
    here: threading.local

    def update(self, step: UpdateStep, on_policy: list[list[OnPolicyItem]], supervised: list[list[Any]]) -> dict[str, float]:
        rollouts = [item.rollout for items in on_policy for item in items]
        time.sleep(self.sleeps.learning * sum(rollout.summary.tokens for rollout in rollouts))
        names = ("policy_gradient", "single_step", "reverse_kl", "reward", "importance_ratio", "clipped", "behavior_gap", "teacher_gap_max")
        return dict.fromkeys(names, 0.0) | {"response_tokens": sum(r.summary.response_tokens for r in rollouts), "grad_norm": 1.0}

    def packed_weights(self, dtype: str) -> Iterator[PackedWeights]:
        if self.here.worker > 0:
            return
        layers = [torch.zeros(self.sleeps.bucket_bytes // 2, dtype=torch.bfloat16) for _ in range(self.sleeps.buckets)]
        yield from pack(((f"layer.{number}", layer) for number, layer in enumerate(layers)), self.sleeps.bucket_bytes)


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


@dataclass(frozen=True)
class Handle:
    """One worker of many in a process, as the groups call it."""

    process: Any
    worker: int
    thread: str

    def __getattr__(self, method: str) -> "Method":
        return Method(self, method)


@dataclass(frozen=True)
class Method:
    handle: Handle
    name: str
    chosen: dict[str, Any] = field(default_factory=dict)

    def options(self, **chosen: Any) -> "Method":
        return replace(self, chosen=chosen)

    def remote(self, *arguments: Any) -> Any:
        process = self.handle.process
        entry = process.stream if self.chosen.get("num_returns") == "streaming" else process.answer
        entry = entry.options(concurrency_group=self.handle.thread, **self.chosen)
        return entry.remote(time.monotonic(), self.handle.worker, self.name, *arguments)


class Many(Group):
    """A group that can stand for any number of workers."""

    processes: list[Any]

    def remote_class(self, worker_class: type) -> Any:
        return ray.remote(concurrency_groups={f"worker{number}": 1 for number in range(THREADS)})(worker_class)

    def stand_for(self, workers: int, sleeps: Sleeps) -> None:
        """Be so many workers from here on, whose work takes so long."""
        self.processes = getattr(self, "processes", self.workers)
        used = min(len(self.processes), workers)
        assert -(-workers // used) <= THREADS
        self.workers = [Handle(self.processes[w % used], w, f"worker{w // used}") for w in range(workers)]
        self.config = self.config.model_copy(update={"workers": workers})
        ray.get([process.set.remote(sleeps) for process in self.processes])

    def take_journal(self) -> list[Call]:
        return [call for calls in ray.get([process.take_journal.remote() for process in self.processes]) for call in calls]

    def stop(self) -> None:
        self.workers = getattr(self, "processes", self.workers)
        super().stop()


class Rollouts(Many, RolloutGroup):
    worker_class = SleepingRollout
    collections: list[Collection]

    def begin(self, *arguments: Any, **options: Any) -> Collection:
        self.collections.append(super().begin(*arguments, **options))
        return self.collections[-1]

    def stand_for(self, workers: int, sleeps: Sleeps) -> None:
        super().stand_for(workers, sleeps)
        self.collections = []


class Teachers(Many, TeacherGroup):
    worker_class = SleepingTeacher


class Learners(Many, LearnerGroup):
    worker_class = SleepingLearner


def start_groups(processes: dict[str, int], tokens_per_call: int, cluster: ClusterConfig) -> tuple[Rollouts, Teachers, Learners]:
    """Groups in so many processes each; `stand_for` says for how many workers. tokens_per_call: what a teacher scores at once."""
    config = LearnerConfig(workers=processes["learner"], tokens_per_microbatch=tokens_per_call)
    setup = LearnerSetup(model="", teacher="", vocabulary=0, config=config, device="cpu", threads=1, seed=0)
    groups = (
        Rollouts(RolloutConfig(workers=processes["rollout"]), cluster, "cpu"),
        Teachers(TeacherConfig(workers=processes["teacher"], model="", micro_batch_tokens=tokens_per_call), cluster, "cpu"),
        Learners(setup, cluster),
    )
    for group in groups:
        group.wait_started()
    return groups
