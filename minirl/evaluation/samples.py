"""A model's responses to one evaluation set with the diagnostics of every token, and their .npz layout.

All values are stored, so that later figures need no new samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from minirl.evaluation.positions import TokenGrid, token_grid
from minirl.model.token_diagnostics import SequenceDiagnostics
from minirl.types import Prompt, Rollout, TokenSequence

DiagnosticsBySeed = list[list[SequenceDiagnostics]]  # [seeds][prompts]
DIAGNOSTIC_FIELDS = tuple(field.name for field in fields(SequenceDiagnostics))


@dataclass(frozen=True)
class EvaluatedSamples:
    """texts, rollouts: [seeds][prompts]. The other fields hold the diagnostics of student and teacher on three kinds of sequences.

    on_model_samples: the measured model's samples; None where n-grams were blocked during sampling. on_gold: the gold sequence of each
    prompt; every assistant turn counts. on_teacher_samples: the teacher's samples; None where they were not requested.
    """

    texts: list[list[str]]
    rollouts: list[list[Rollout]]
    on_model_samples: DiagnosticsBySeed | None
    on_gold: list[SequenceDiagnostics]
    on_teacher_samples: DiagnosticsBySeed | None = None

    def arrays(self, rouge_l: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays for an .npz file. rouge_l: [seeds, prompts].

        Token values are concatenated seed after seed, prompt after prompt; `lengths` [seeds, prompts] gives the length of each response.
        The diagnostics `own/...` (on_model_samples), `gold/...` and `on_teacher/...` have the same layout, each with its `.../lengths`.
        """
        rollouts = [rollout for one_seed in self.rollouts for rollout in one_seed]
        arrays = {
            "rouge_l": rouge_l.astype(np.float32),
            "lengths": np.array([[len(r.response_tokens) for r in one_seed] for one_seed in self.rollouts]),
            "truncated": np.array([[r.truncated for r in one_seed] for one_seed in self.rollouts]),
            "tokens": np.concatenate([r.response_tokens for r in rollouts]).astype(np.int32),
            "behavior_logprobs": np.concatenate([r.behavior_logprobs for r in rollouts]),
        }
        on_gold = [self.on_gold] if self.on_gold else None
        for name, rows in (("own", self.on_model_samples), ("on_teacher", self.on_teacher_samples), ("gold", on_gold)):
            if rows is not None:
                arrays |= {f"{name}/{key}": value for key, value in _lengths_and_fields(rows)}
        return arrays


def sequences_from_arrays(arrays: Mapping[str, np.ndarray], prompts: Sequence[Prompt]) -> list[list[TokenSequence]]:
    """[seeds][prompts], from the `arrays` of a model's responses to these prompts; the targets are the responses."""
    ends = arrays["lengths"].cumsum()[:-1]
    responses = iter(np.split(arrays["tokens"].astype(np.int64), ends))
    return [[_sequence(prompt, next(responses)) for prompt in prompts] for _ in arrays["lengths"]]


def _sequence(prompt: Prompt, response: np.ndarray) -> TokenSequence:
    tokens = np.concatenate([prompt.tokens, response])
    return TokenSequence(tokens, np.arange(len(tokens)) >= len(prompt.tokens), prompt.teacher)


def response_sums(rows: DiagnosticsBySeed, field: str) -> np.ndarray:
    """Sum of a field over the tokens of each response: float64 [seeds, prompts]."""
    return np.array([[getattr(diagnostics, field).sum(dtype=np.float64) for diagnostics in prompts] for prompts in rows])


def response_lengths(rows: DiagnosticsBySeed) -> np.ndarray:
    """Tokens of each response: int [seeds, prompts]."""
    return np.array([[len(diagnostics.correct) for diagnostics in prompts] for prompts in rows])


def field_grid(rows: DiagnosticsBySeed, field: str) -> TokenGrid:
    """A field as a grid [seeds, prompts, positions]."""
    return token_grid([[getattr(diagnostics, field) for diagnostics in prompts] for prompts in rows])


def concatenated(rows: Sequence[SequenceDiagnostics], field: str) -> np.ndarray:
    """A field of all sequences, one after another."""
    return np.concatenate([getattr(diagnostics, field) for diagnostics in rows])


def _lengths_and_fields(rows: DiagnosticsBySeed) -> Iterator[tuple[str, np.ndarray]]:
    yield "lengths", response_lengths(rows)
    for field in DIAGNOSTIC_FIELDS:
        yield field, concatenated([diagnostics for prompts in rows for diagnostics in prompts], field)
