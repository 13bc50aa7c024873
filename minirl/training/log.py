"""What a run reports while it goes: one JSON line an iteration, and the same dictionary to whoever watches."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minirl.files import drop_half_line, read_json_lines
from minirl.types import RolloutSummary

Record = dict[str, float | int | str]
Listener = Callable[[Record], None]


class MetricsLog:
    """`metrics.jsonl`. Records of one stage are numbered by `counter` (iteration or update); a resume drops those after its checkpoint."""

    def __init__(self, path: Path, stage: str, counter: str, *, listener: Listener | None = None):
        self.path, self.stage, self.counter, self.listener = path, stage, counter, listener

    def resume_at(self, number: int) -> None:
        """Forget records of this stage that the resumed run will write again: those numbered `number` or higher."""
        if not self.path.is_file():
            return
        drop_half_line(self.path)
        kept = [r for r in read_json_lines(self.path) if r["stage"] != self.stage or r[self.counter] < number]
        staging = self.path.with_name(self.path.name + ".partial")
        staging.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(staging, self.path)

    def write(self, number: int, values: Record) -> None:
        record: Record = {"stage": self.stage, self.counter: number, **values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.listener:
            self.listener(record)


class Stopwatch:
    """Seconds spent under each name, from one `reset` to the next. `listener` is told each name as it begins."""

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
        seconds, self.seconds = self.seconds, {}
        return seconds


PER_TOKEN = ("reverse_kl", "reward", "importance_ratio", "clipped")
LOSSES = {"policy_gradient": "policy_gradient", "single_step": "single_step", "supervised": "pretrain"}


def iteration_record(responses: list[RolloutSummary], logged: list[dict[str, float]], effort: dict[str, float], epochs: int) -> Record:
    """responses: of the student; logged: the sums of each update, in order; effort: seconds and bytes of the other roles;
    epochs: how often each response was learnt from."""
    losses = _losses(logged)
    effort = effort | {"learner/busy_seconds": sum(s["busy_seconds"] for s in logged)}
    sampled, tokens = sum(s.response_tokens for s in responses), sum(s.tokens for s in responses)
    worked = {"rollout": sampled, "teacher": tokens, "learner": epochs * tokens}
    return {
        "loss/total": sum(losses.values()),
        **losses,
        **{f"rollout/{name}": value for name, value in _per_token(logged, PER_TOKEN, "response_tokens").items()},
        # Later updates of the iteration meet a student that is no longer the one that sampled.
        **{f"rollout/{name}": value for name, value in _per_token(logged[:1], ("behavior_gap",), "response_tokens").items()},
        "rollout/mean_response_tokens": float(np.mean([s.response_tokens for s in responses])),
        "rollout/truncated": float(np.mean([s.truncated for s in responses])),
        "rollout/response_tokens": sampled,
        "rollout/tokens": tokens,
        "learner/grad_norm": float(np.mean([s.get("grad_norm", np.nan) for s in logged])),
        "learner/teacher_gap": max(s["teacher_gap_max"] for s in logged),
        **effort,
        **{f"{role}/tokens_per_second": worked[role] / effort[f"{role}/busy_seconds"] for role in worked},
    }


def _losses(logged: list[dict[str, float]]) -> Record:
    """Means over the updates; a divergence's over the tokens, since the two kinds of sequences that it learns from share one mean."""
    divergence = _per_token(logged, ("divergence",), "supervised_tokens")
    if divergence:
        return {f"loss/{name}": value for name, value in divergence.items()}
    return {f"loss/{name}": float(np.mean([s[key] for s in logged])) for key, name in LOSSES.items() if key in logged[0]}


def _per_token(logged: list[dict[str, float]], names: tuple[str, ...], count: str) -> Record:
    """The means of those summed values that are there, over all tokens of these updates."""
    return {name: sum(s[name] for s in logged) / sum(s[count] for s in logged) for name in names if name in logged[0]}
