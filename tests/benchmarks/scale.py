"""Simulation of scale: the real driver with up to 1,024 rollout workers that sleep instead of computing.

    python -m tests.benchmarks.scale --workers 8 64 256 1024 --out DIR

Groups and object store are real, too. It measures for each size: the time of an iteration against the slowest role alone, the driver's
time for a rollout, the delay between a call and its start in the worker, and the bytes that go through the object store. Eight processes
simulate all workers (`tests.benchmarks.sleeping`).
"""

import argparse
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console

from actors.config import ClusterConfig
from actors.groups.placement import cluster
from actors.groups.publishing import make_publisher
from launch.progress import rich_table
from minirl.config.objective import ObjectiveConfig
from minirl.config.stages import DistillConfig
from minirl.training.log import MetricsLog
from minirl.training.on_policy_loop import OnPolicyLoop
from minirl.types import Prompt
from tests.benchmarks.scale_results import (
    PROMPT_TOKENS,
    RESPONSE_TOKENS,
    ROLES,
    ScaleResult,
    ScaleSetting,
    calls_by_worker,
    progress_line,
    save,
    summarize,
    tables,
    verdict,
)
from tests.benchmarks.sleeping import start_groups

PROCESSES = {"rollout": 4, "teacher": 2, "learner": 2}
SAMPLES_PER_PROMPT, TOKENS_PER_CALL, UPDATES = 4, 4096, 4
SECONDS, SECONDS_PER_ROLLOUT = 8.0, 6e-3  # of the slowest role: realistic times, and enough time for this machine to run all workers
MEASURED = 2  # iterations
OBJECT_STORE_BYTES = 8 * 2**30
# Results above this size go through the object store. Real scores always exceed Ray's own limit; shrunk ones exceed only this one. Below
# the limit Ray sends results within calls, with at most 16 MiB in transit to one process, which here simulates many learner workers.
MESSAGE_BYTES = 2**14


class Simulation:
    """Groups that simulate one size after another. A context manager: its end stops the groups."""

    def __init__(self, processes: dict[str, int], longest_s: float = SECONDS):
        """longest_s: the longest iteration; it sets the time limit of a call, which may wait behind iterations sampled ahead."""
        config = ClusterConfig(step_timeout_s=300 + 3 * longest_s, start_timeout_s=300)
        self.groups = start_groups(processes, TOKENS_PER_CALL, config)

    def __enter__(self) -> "Simulation":
        return self

    def __exit__(self, *_: object) -> None:
        for group in self.groups:
            group.stop()

    def measure(self, setting: ScaleSetting) -> ScaleResult:
        for role, group in zip(ROLES, self.groups, strict=True):
            group.simulate_workers(setting.workers_of(role), setting.sleep_times)
        records: list[dict] = []
        warm_up = 1 + setting.max_staleness  # the first iteration is slow, and so are those that are sampled ahead during it
        with TemporaryDirectory() as directory:
            metrics = MetricsLog(Path(directory) / "metrics.jsonl", "distill", "iteration", listener=records.append)
            loop = self._loop(setting, warm_up + MEASURED, metrics)
            clocks = []
            for progress in loop.run():
                clocks.append((time.monotonic(), time.process_time(), time.thread_time()))
                if progress.iteration == warm_up + MEASURED:
                    break
            for pending in loop.pending_iterations:  # sampled ahead, and not needed any more
                pending.rollouts.scores()
            loop.pending_weights.wait()
        journals = {role: calls_by_worker(group) for role, group in zip(ROLES, self.groups, strict=True)}
        collections = self.groups[0].collections[warm_up : warm_up + MEASURED]
        collection_cpu = float(np.mean([collection.cpu_seconds for collection in collections]))
        return summarize(setting, records[warm_up:], clocks[warm_up - 1 :], collection_cpu, journals)

    def _loop(self, setting: ScaleSetting, iterations: int, metrics: MetricsLog) -> OnPolicyLoop:
        random, prompts = np.random.default_rng(0), setting.rollouts // SAMPLES_PER_PROMPT
        config = DistillConfig(
            iterations=iterations + setting.max_staleness,
            learning_rate=1.0,
            prompts_per_iteration=prompts,
            samples_per_prompt=SAMPLES_PER_PROMPT,
            updates_per_epoch=UPDATES,
            max_staleness=setting.max_staleness,
        )
        loop = OnPolicyLoop(
            config,
            ObjectiveConfig(),
            prompts=[Prompt(random.integers(0, 50000, PROMPT_TOKENS), index) for index in range(prompts)],
            supervised_sequences=None,
            supervised_per_update=0,
            max_response_tokens=RESPONSE_TOKENS,
            teacher_share=0.0,
            seed=0,
            metrics=metrics,
        )
        rollout, teacher, learner = self.groups
        loop.connect(rollout, teacher, learner, publish=make_publisher(learner, rollout).publish)
        return loop


def settings(sizes: list[int], rollouts_per_worker: int, seconds: float, ahead: int) -> Iterator[ScaleSetting]:
    """The measurements to make.

    Every size samples `ahead` iterations ahead. Sizes up to 64 workers also run without sampling ahead. The size 64 also runs with the
    other number of iterations ahead, with other slowest roles, and with equally slow roles.
    """
    for size in sizes:
        setting = partial(ScaleSetting, size, rollouts_per_worker, seconds=max(seconds, SECONDS_PER_ROLLOUT * size * rollouts_per_worker))
        yield setting("sampling", ahead)
        if size <= 64:
            yield setting("sampling", 0)
        if size == 64:
            yield from (
                setting("sampling", 3 - ahead),
                setting("learning", ahead),
                setting("none", ahead),
                setting("none", 3 - ahead),
            )


def run(chosen: list[ScaleSetting], console: Console) -> list[ScaleResult]:
    """Make all measurements, and print a line after each."""
    os.environ["RAY_max_direct_call_object_size"] = str(MESSAGE_BYTES)  # noqa: SIM112, Ray spells it so
    results: list[ScaleResult] = []
    longest_s = max(setting.seconds for setting in chosen)
    with cluster(sum(PROCESSES.values()), OBJECT_STORE_BYTES), Simulation(PROCESSES, longest_s) as simulation:
        for setting in chosen:
            results.append(simulation.measure(setting))
            console.print(progress_line(results[-1]), soft_wrap=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--rollouts-per-worker", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="seconds of the slowest role, at least")
    parser.add_argument("--ahead", type=int, choices=(1, 2), default=1, help="iterations to sample ahead")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    console = Console(width=80)
    chosen = list(settings(arguments.workers, arguments.rollouts_per_worker, arguments.seconds, arguments.ahead))
    results = run(chosen, console)
    for table in tables(results):
        console.print(rich_table(table))
    console.print(verdict(results))
    save(arguments.out, results)


if __name__ == "__main__":
    main()
