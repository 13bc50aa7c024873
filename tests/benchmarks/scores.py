"""Benchmark of scores out of sampling: seconds of an iteration with the teacher's scores out of sampling and by the teacher group.

    python -m tests.benchmarks.scores configs/quickstart.yaml --out DIR [key=value ...]

Both kinds of iteration take turns in one run of the stage `distill`, on the same groups, so that a machine that becomes slower meets both.
The learning rate is so low that the student, and with it the work of an iteration, stays as it is.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median

from actors.groups.publishing import make_publisher
from actors.node_facts import node_facts
from launch.config import OnPolicyStage, RunConfig, on_policy_stage
from launch.groups import Groups
from launch.prepare import PreparedRun, prepare
from launch.run.on_policy import make_loop
from minirl.bench.machine import processor_name, vector_instructions
from minirl.config.reader import read_config
from minirl.files import write_json
from minirl.tables import Table
from minirl.training.log import MetricsLog, Record

WARM_UP = 2  # iterations that are not counted, one of each kind
NO_LEARNING = ("stages.distill.learning_rate=1e-12", "stages.distill.max_staleness=0", "teacher.scores=from_sampling")
VERBS = ("sample", "score", "update")


class StageWithBoth(OnPolicyStage):
    """The stage with a teacher group, which the scores out of sampling do not need."""

    needs_teacher_group = True


def measure(prepared: PreparedRun) -> tuple[dict[str, list[Record]], int]:
    """The log records of the measured iterations by kind, and the teacher group's peak bytes."""
    stage, records = on_policy_stage(prepared.config, "distill"), []
    log = MetricsLog(prepared.directory / "scores.jsonl", "distill", "iteration", listener=records.append)
    both = StageWithBoth(**vars(stage))
    loop = make_loop(prepared, both, log)
    with (
        Groups(prepared) as groups,
        groups.rollout_teacher_learner(prepared.student, prepared.teachers, on_policy=both) as (rollout, teacher, learner),
    ):
        loop.connect(rollout, teacher, learner, publish=make_publisher(learner, rollout).publish)
        for _ in loop.run():
            loop.scores_from_sampling = not loop.scores_from_sampling
        peak = sum(teacher.peak_memory())
    return {"from_sampling": records[WARM_UP::2], "group": records[WARM_UP + 1 :: 2]}, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", help="key=value, as for `minirl run`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=5, help="of each kind")
    arguments = parser.parse_intermixed_args()
    settings = (*arguments.overrides, *NO_LEARNING, f"directory={arguments.out / 'run'}")
    prepared = prepare(read_config(RunConfig, arguments.config, settings))
    distill = prepared.config.stages.distill.model_copy(update={"iterations": WARM_UP + 2 * arguments.iterations})
    stages = prepared.config.stages.model_copy(update={"distill": distill})
    prepared = replace(prepared, config=prepared.config.model_copy(update={"stages": stages}))
    records, peak = measure(prepared)
    seconds = {
        kind: {name: median(record[f"time/{name}"] for record in own) for name in ("iteration", *VERBS)} for kind, own in records.items()
    }
    ratio = seconds["group"]["iteration"] / seconds["from_sampling"]["iteration"]
    rows = [(kind, *(f"{value:.2f} s" for value in own.values())) for kind, own in seconds.items()]
    table = Table(f"Scores out of sampling: an iteration is {ratio:.2f} times as fast", ("teacher.scores", "iteration", *VERBS), rows)
    about = {
        "machine": f"{processor_name()}, {node_facts().usable_cores} cores",
        "instructions": " ".join(vector_instructions()),
        "config": arguments.config,
        "overrides": arguments.overrides,
        "dtype": prepared.config.rollout.dtype,
        "iterations": arguments.iterations,
        "teacher_group_peak_bytes": peak,
    }
    print(table.markdown())
    write_json(arguments.out / "scores.json", {"about": about, "ratio": ratio, "seconds": seconds, "records": records})
    lines = [table.markdown(), *(f"- {name}: {value}" for name, value in about.items()), ""]
    (arguments.out / "scores.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
