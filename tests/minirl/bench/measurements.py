"""Example measurements of `minirl bench` for tests, with round numbers that are easy to compute with by hand."""

from dataclasses import replace
from typing import Any

from minirl.bench.efficiency import ROLES, BenchResult, Limit, Work


def record(**changes: float) -> dict[str, float]:
    """The driver's log record of one iteration of 7 s: 400 response tokens, 600 with their prompts."""
    return {
        "time/iteration": 7.0, "time/sample": 2.5, "time/score": 0.3, "time/credit": 0.1, "time/update": 3.8, "time/publish": 0.25,
        "rollout/busy_seconds": 2.1, "teacher/busy_seconds": 0.7, "learner/busy_seconds": 3.2,
        "rollout/response_tokens": 400.0, "rollout/tokens": 600.0,
        "rollout/payload_bytes": 5e4, "teacher/payload_bytes": 3.4e6, "publish/bytes": 2.3e8,
    } | changes  # fmt: skip


def measurements(**changes: Any) -> BenchResult:
    alone = {
        "rollout": Work(2.0, 400, 2e11), "teacher": Work(0.6, 600, 3e11), "learner": Work(3.0, 600, 9e11),
        "plain": Work(0.8, 400, 1e11), "teacher_only": Work(1.0, 400, 1e11), "mixed": Work(2.0, 400, 2e11),
    }  # fmt: skip
    limits = {"learner": Limit(3.0, 2.7), "chunked_kl": Limit(0.5, 0.4), "publish": Limit(0.2, 0.02)}
    memory = {"driver": [400_000_000], "rollout": [1_300_000_000, 1_200_000_000], "teacher": [10**9], "learner": [3 * 10**9]}
    result = BenchResult(
        sharing=[[*ROLES]], devices={"rollout": 2, "teacher": 1, "learner": 1},
        matmul_flops={"rollout": 1e12, "teacher": 1e12, "learner": 5e11}, max_staleness=0,
        epochs_per_iteration=1, iterations=[record()], alone=alone, limits=limits,
        publish_bytes=230_000_000, padding=0.05, memory=memory,
    )  # fmt: skip
    return replace(result, **changes)
