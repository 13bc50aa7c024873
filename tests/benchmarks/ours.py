"""minillm-ray as a contestant: the groups and the training loop of a run, one iteration for each requested update."""

import sys
from functools import partial
from pathlib import Path

from actors.groups.publishing import make_publisher
from launch.config import RunConfig, on_policy_stage
from launch.groups import Groups
from launch.prepare import prepare
from launch.run.on_policy import make_loop
from minirl.config.reader import read_config
from minirl.training.log import MetricsLog, Record
from tests.benchmarks.protocol import Job, UpdateCounts, UpdateServer


def main() -> None:
    server, job = UpdateServer(), Job.read(sys.argv[1])
    prepared = prepare(read_config(RunConfig, job.config, []))
    stage, student = on_policy_stage(prepared.config, "distill"), prepared.student
    records: list[Record] = []
    log = Path(job.directory) / "ours.jsonl"
    log.unlink(missing_ok=True)
    loop = make_loop(prepared, stage, MetricsLog(log, "distill", "iteration", listener=records.append))
    iterations = loop.run()

    def update() -> UpdateCounts:
        next(iterations)
        tokens, responses = int(records[-1]["rollout/tokens"]), int(records[-1]["rollout/response_tokens"])
        return UpdateCounts(stage.config.responses_per_iteration, tokens - responses, responses)

    with (
        Groups(prepared) as groups,
        groups.rollout_teacher_learner(student, prepared.teachers, on_policy=stage) as (rollout, teacher, learner),
    ):
        loop.connect(rollout, teacher, learner, publish=make_publisher(learner, rollout).publish)
        server.serve(update, partial(learner.export, student))


if __name__ == "__main__":
    main()
