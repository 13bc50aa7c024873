"""What one iteration leaves in the log: means over its updates, and what each role spent."""

import numpy as np

from minirl.metrics import Record
from minirl.rollout import RolloutSummary

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
