"""The metrics log: one JSON line per iteration or update, the stopwatch, and the record of an on-policy iteration."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minirl.files import drop_incomplete_line, read_json_lines
from minirl.types import RolloutSummary

Record = dict[str, float | int | str]
Listener = Callable[[Record], None]


class MetricsLog:
    """Writes `metrics.jsonl` and passes each record to `listener`.

    counter: the key that numbers the records of the stage, "iteration" or "update".
    """

    def __init__(self, path: Path, stage: str, counter: str, *, listener: Listener | None = None):
        self.path, self.stage, self.counter, self.listener = path, stage, counter, listener

    def resume_at(self, number: int) -> None:
        """Remove this stage's records numbered `number` or higher: the resumed run will write them again."""
        if not self.path.is_file():
            return
        drop_incomplete_line(self.path)
        remaining = [r for r in read_json_lines(self.path) if r["stage"] != self.stage or r[self.counter] < number]
        staging = self.path.with_name(self.path.name + ".partial")
        staging.write_text("".join(json.dumps(record) + "\n" for record in remaining))
        os.replace(staging, self.path)

    def write(self, number: int, values: Record) -> None:
        record: Record = {"stage": self.stage, self.counter: number, **values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.listener:
            self.listener(record)


class Stopwatch:
    """Seconds spent under each name since the last `reset`. Calls `listener` with each name when its block starts.

    Use as `with stopwatch("update"): ...`. A name that comes several times adds up.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.listener: Callable[[str], None] = lambda name: None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.listener(name)
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def reset(self) -> dict[str, float]:
        """Return the seconds by name and start again from nothing."""
        seconds, self.seconds = self.seconds, {}
        return seconds


PER_TOKEN = ("reverse_kl", "reward", "importance_ratio", "clipped")
LOSSES = {"policy_gradient": "policy_gradient", "single_step": "single_step", "supervised": "pretrain"}


def iteration_record(
    responses: list[RolloutSummary], update_sums: list[dict[str, float]], call_costs: dict[str, float], epochs: int
) -> Record:
    """The log record of one on-policy iteration.

    responses: summaries of the student's responses. update_sums: the sums of each update, in order. call_costs: seconds and bytes of the
    other roles; without those of the teacher where the scores come out of sampling. epochs: how often each response was learnt from.
    """
    losses = _losses(update_sums)
    call_costs = call_costs | {"learner/busy_seconds": sum(s["busy_seconds"] for s in update_sums)}
    response_tokens, tokens = sum(s.response_tokens for s in responses), sum(s.tokens for s in responses)
    tokens_by_role = {"rollout": response_tokens, "teacher": tokens, "learner": epochs * tokens}
    busy_seconds = {role: call_costs[key] for role in tokens_by_role if (key := f"{role}/busy_seconds") in call_costs}
    return {
        "loss/total": sum(losses.values()),
        **losses,
        **{f"rollout/{name}": value for name, value in _per_token(update_sums, PER_TOKEN, "response_tokens").items()},
        # Only the first update: after it, the student is no longer the one that sampled.
        **{f"rollout/{name}": value for name, value in _per_token(update_sums[:1], ("behavior_gap",), "response_tokens").items()},
        "rollout/mean_response_tokens": float(np.mean([s.response_tokens for s in responses])),
        "rollout/truncated": float(np.mean([s.truncated for s in responses])),
        "rollout/response_tokens": response_tokens,
        "rollout/tokens": tokens,
        "learner/grad_norm": float(np.mean([s.get("grad_norm", np.nan) for s in update_sums])),
        "learner/teacher_gap": max(s["teacher_gap_max"] for s in update_sums),
        **call_costs,
        **{f"{role}/tokens_per_second": tokens_by_role[role] / seconds for role, seconds in busy_seconds.items()},
    }


def _losses(update_sums: list[dict[str, float]]) -> Record:
    """Means over the updates. A divergence is averaged over the tokens: sampled and gold sequences share one mean."""
    divergence = _per_token(update_sums, ("divergence",), "supervised_tokens")
    if divergence:
        return {f"loss/{name}": value for name, value in divergence.items()}
    return {f"loss/{name}": float(np.mean([s[key] for s in update_sums])) for key, name in LOSSES.items() if key in update_sums[0]}


def _per_token(update_sums: list[dict[str, float]], names: tuple[str, ...], count: str) -> Record:
    """Means over all tokens of these updates, for the names that the updates have. count: the key of the number of tokens."""
    return {name: sum(s[name] for s in update_sums) / sum(s[count] for s in update_sums) for name in names if name in update_sums[0]}
