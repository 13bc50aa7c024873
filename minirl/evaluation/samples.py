"""What one model said to one set of prompts and what was measured of it: kept as it is, so that other figures can be made of it later."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from minirl.evaluation.positions import TokenGrid, token_grid
from minirl.model.token_diagnostics import SequenceDiagnostics
from minirl.types import Prompt, Rollout, TokenSequence

PerSample = list[list[SequenceDiagnostics]]  # [seeds][prompts]
DIAGNOSED = tuple(field.name for field in fields(SequenceDiagnostics))


@dataclass(frozen=True)
class EvaluatedSamples:
    """Lists [seeds][prompts]: texts, rollouts, and what student and teacher make of their tokens.

    own: of the model's own samples, None where something was blocked while they were sampled. on_teacher: of the teacher's samples, None
    where that was not asked for. gold: one for each prompt, of its gold sequence; every assistant turn counts.
    """

    texts: list[list[str]]
    rollouts: list[list[Rollout]]
    own: PerSample | None
    gold: list[SequenceDiagnostics]
    on_teacher: PerSample | None = None

    def arrays(self, rouge_l: np.ndarray) -> dict[str, np.ndarray]:
        """For an .npz file. rouge_l: [seeds, prompts]. Values of tokens follow one another, seed after seed, prompt after prompt; `lengths`
        [seeds, prompts] says where each response ends. `gold/...` likewise, `on_teacher/...` with its own lengths.
        """
        flat = [rollout for one_seed in self.rollouts for rollout in one_seed]
        found = {
            "rouge_l": rouge_l.astype(np.float32),
            "lengths": np.array([[len(r.response_tokens) for r in one_seed] for one_seed in self.rollouts]),
            "truncated": np.array([[r.truncated for r in one_seed] for one_seed in self.rollouts]),
            "tokens": np.concatenate([r.response_tokens for r in flat]).astype(np.int32),
            "behavior_logprobs": np.concatenate([r.behavior_logprobs for r in flat]),
        }
        for name, rows in (("own", self.own), ("on_teacher", self.on_teacher), ("gold", [self.gold] if self.gold else None)):
            if rows is not None:
                found |= {f"{name}/{key}": value for key, value in _joined(rows)}
        return found


def sequences_of(arrays: Mapping[str, np.ndarray], prompts: Sequence[Prompt]) -> list[list[TokenSequence]]:
    """[seeds][prompts], from the `arrays` of a model that answered these prompts; the targets are the responses."""
    ends = arrays["lengths"].cumsum()[:-1]
    responses = iter(np.split(arrays["tokens"].astype(np.int64), ends))
    return [[_sequence(prompt, next(responses)) for prompt in prompts] for _ in arrays["lengths"]]


def _sequence(prompt: Prompt, response: np.ndarray) -> TokenSequence:
    tokens = np.concatenate([prompt.tokens, response])
    return TokenSequence(tokens, np.arange(len(tokens)) >= len(prompt.tokens), prompt.teacher)


def sums(rows: PerSample, field: str) -> np.ndarray:
    """Over the tokens of each response: float64 [seeds, prompts]."""
    return np.array([[getattr(one, field).sum(dtype=np.float64) for one in prompts] for prompts in rows])


def counts(rows: PerSample) -> np.ndarray:
    return np.array([[len(one.correct) for one in prompts] for prompts in rows])


def grid(rows: PerSample, field: str) -> TokenGrid:
    return token_grid([[getattr(one, field) for one in prompts] for prompts in rows])


def flat(rows: Sequence[SequenceDiagnostics], field: str) -> np.ndarray:
    return np.concatenate([getattr(one, field) for one in rows])


def _joined(rows: PerSample) -> Iterator[tuple[str, np.ndarray]]:
    yield "lengths", counts(rows)
    for field in DIAGNOSED:
        yield field, flat([one for prompts in rows for one in prompts], field)
