"""The driver, the groups and the object store at the work of up to 1,024 rollout workers, whose models sleep instead of computing.

    python -m tests.benchmarks.scale --workers 8 64 256 1024 --out DIR

For each size: how long an iteration takes beside the slowest role alone, what the driver spends on a rollout, how long workers wait
for a call that was made, and the bytes that go through the object store. Eight processes hold all workers (`tests.benchmarks.sleeping`).
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
from launch.progress import shown
from minirl.config.objective import ObjectiveConfig
from minirl.config.stages import DistillConfig
from minirl.training.log import MetricsLog
from minirl.training.on_policy_loop import OnPolicyLoop
from minirl.types import Prompt
from tests.benchmarks.scale_results import (
    PROMPT_TOKENS,
    RESPONSE_TOKENS,
    ROLES,
    Found,
    Scale,
    by_worker,
    found_in,
    save,
    tables,
    told,
    verdict,
)
from tests.benchmarks.sleeping import start_groups

PROCESSES = {"rollout": 4, "teacher": 2, "learner": 2}
SAMPLES_PER_PROMPT, TOKENS_PER_CALL, UPDATES = 4, 4096, 4
SECONDS, SECONDS_A_ROLLOUT = 8.0, 6e-3  # of the slowest role, as of real ones; this machine must carry all of them
MEASURED = 2  # iterations
OBJECT_STORE_BYTES = 8 * 2**30
# Scores go through the object store, as those of real shapes do, also where they are shrunk: Ray has 16 MiB of what travels within calls
# under way to one process, which here holds the learners of many.
MESSAGE_BYTES = 2**14


class Simulation:
    """Groups that stand for one size after another; they end with the block."""

    def __init__(self, processes: dict[str, int], longest_s: float = SECONDS):
        """longest_s: of the iterations to come; a call may wait behind those that were sampled ahead."""
        config = ClusterConfig(step_timeout_s=300 + 3 * longest_s, start_timeout_s=300)
        self.groups = start_groups(processes, TOKENS_PER_CALL, config)

    def __enter__(self) -> "Simulation":
        return self

    def __exit__(self, *_: object) -> None:
        for group in self.groups:
            group.stop()

    def measure(self, scale: Scale) -> Found:
        for role, group in zip(ROLES, self.groups, strict=True):
            group.stand_for(scale.workers_of(role), scale.sleeps)
        records: list[dict] = []
        warm_up = 1 + scale.max_staleness  # what was sampled ahead while the first was slow must be used up
        with TemporaryDirectory() as directory:
            metrics = MetricsLog(Path(directory) / "metrics.jsonl", "distill", "iteration", listener=records.append)
            driver = self._driver(scale, warm_up + MEASURED, metrics)
            clock = []
            for progress in driver.run():
                clock.append((time.monotonic(), time.process_time(), time.thread_time()))
                if progress.iteration == warm_up + MEASURED:
                    break
            for begun in driver.begun:  # iterations that were sampled ahead
                begun.collection.scores()
            driver.publication.wait()
        journals = {role: by_worker(group) for role, group in zip(ROLES, self.groups, strict=True)}
        collecting = [one.cpu_seconds for one in self.groups[0].collections[warm_up : warm_up + MEASURED]]
        return found_in(scale, records[warm_up:], clock[warm_up - 1 :], float(np.mean(collecting)), journals)

    def _driver(self, scale: Scale, iterations: int, metrics: MetricsLog) -> OnPolicyLoop:
        draw, prompts = np.random.default_rng(0), scale.rollouts // SAMPLES_PER_PROMPT
        config = DistillConfig(
            iterations=iterations + scale.max_staleness,
            learning_rate=1.0,
            prompts_per_iteration=prompts,
            samples_per_prompt=SAMPLES_PER_PROMPT,
            updates_per_epoch=UPDATES,
            max_staleness=scale.max_staleness,
        )
        driver = OnPolicyLoop(
            config,
            ObjectiveConfig(),
            prompts=[Prompt(draw.integers(0, 50000, PROMPT_TOKENS), index) for index in range(prompts)],
            given=None,
            given_per_update=0,
            max_response_tokens=RESPONSE_TOKENS,
            teacher_share=0.0,
            seed=0,
            metrics=metrics,
        )
        rollout, teacher, learner = self.groups
        driver.connect(rollout, teacher, learner, publish=make_publisher(learner, rollout).publish)
        return driver


def scales(sizes: list[int], rollouts_per_worker: int, seconds: float, ahead: int) -> Iterator[Scale]:
    """`ahead` iterations ahead at every size; in turn at the smaller; in the middle, the other number ahead and other roles slowest."""
    for size in sizes:
        longer = max(seconds, SECONDS_A_ROLLOUT * size * rollouts_per_worker)
        one = partial(Scale, size, rollouts_per_worker, seconds=longer)
        yield one("sampling", ahead)
        if size <= 64:
            yield one("sampling", 0)
        if size == 64:
            yield from (one("sampling", 3 - ahead), one("learning", ahead), one("none", ahead), one("none", 3 - ahead))


def run(chosen: list[Scale], console: Console) -> list[Found]:
    os.environ["RAY_max_direct_call_object_size"] = str(MESSAGE_BYTES)  # noqa: SIM112, Ray spells it so
    found: list[Found] = []
    longest_s = max(scale.seconds for scale in chosen)
    with cluster(sum(PROCESSES.values()), OBJECT_STORE_BYTES), Simulation(PROCESSES, longest_s) as simulation:
        for scale in chosen:
            found.append(simulation.measure(scale))
            console.print(told(found[-1]), soft_wrap=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--rollouts-per-worker", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the slowest role, at least")
    parser.add_argument("--ahead", type=int, choices=(1, 2), default=1, help="iterations that are sampled ahead")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    console = Console(width=80)
    found = run(list(scales(chosen.workers, chosen.rollouts_per_worker, chosen.seconds, chosen.ahead)), console)
    for table in tables(found):
        console.print(shown(table))
    console.print(verdict(found))
    save(chosen.out, found)


if __name__ == "__main__":
    main()
