"""minillm-ray as a contestant: the groups and the driver of a run, one iteration a turn."""

import sys
from functools import partial
from pathlib import Path

from actors.groups.publishing import make_publisher
from launch.config import RunConfig, on_policy_stage
from launch.groups import Groups
from launch.prepare import prepare
from launch.run.on_policy import make_driver
from minirl.config.reader import read_config
from minirl.training.log import MetricsLog, Record
from tests.benchmarks.turns import Job, Turns, Worked


def main() -> None:
    turns, job = Turns(), Job.read(sys.argv[1])
    prepared = prepare(read_config(RunConfig, job.config, []))
    kind, student = on_policy_stage(prepared.config, "distill"), prepared.student
    records: list[Record] = []
    log = Path(job.directory) / "ours.jsonl"
    log.unlink(missing_ok=True)
    driver = make_driver(prepared, kind, MetricsLog(log, "distill", "iteration", listener=records.append))
    iterations = driver.run()

    def update() -> Worked:
        next(iterations)
        tokens, responses = int(records[-1]["rollout/tokens"]), int(records[-1]["rollout/response_tokens"])
        return Worked(kind.config.responses_per_iteration, tokens - responses, responses)

    with (
        Groups(prepared) as groups,
        groups.rollout_teacher_learner(student, prepared.teachers, on_policy=kind) as (rollout, teacher, learner),
    ):
        driver.connect(rollout, teacher, learner, publish=make_publisher(learner, rollout).publish)
        turns.serve(update, partial(learner.export, student))


if __name__ == "__main__":
    main()
