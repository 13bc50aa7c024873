"""The values that travel between the roles, all in token ids and numpy so that Ray's object store shares them without a copy.

Worked example, a prompt of 3 tokens and a response of 2 (the end token, 2, included):

    prompt    tokens [7, 8, 9]
    rollout   response_tokens [5, 2], behavior_logprobs [-1.2, -0.3]: under whatever sampled them
    sequence  tokens [7, 8, 9, 5, 2], is_target [0, 0, 0, 1, 1]: what a model is asked about
    scores    for the two targets, in order: logprobs [-1.0, -0.2], log_normalizers [11.3, 9.8], hidden [2, d]; row i is the
              teacher's state *before* it reads target i, so `hidden[i] @ head.T` are the logits that predict target i

bfloat16 has no numpy type: a uint16 array holds its bits (`array_of`, `tensor_of`).
"""

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True)
class Prompt:
    """A prompt ready to sample from.

    tokens: int64 [P]. index: the record's place in its data set, part of every sampling seed. references: gold responses as
    text, empty where there is none. gold: int64 [G], the gold response in tokens with its end token, empty where there is none.
    teacher: the id of the one of several teachers that speaks for it, None where that is not the records' matter. text: what was asked,
    without the template's markup, for people and judges.
    """

    tokens: np.ndarray
    index: int
    references: tuple[str, ...] = ()
    gold: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    teacher: str | None = None
    text: str = ""


@dataclass(frozen=True)
class TokenSequence:
    """Tokens and which of them are targets. tokens: int64 [n]; is_target: bool [n], False at 0 (nothing predicts the first). teacher: as
    of `Prompt`; None: whoever there is.
    """

    tokens: np.ndarray
    is_target: np.ndarray
    teacher: str | None = None

    @property
    def targets(self) -> int:
        return int(self.is_target.sum())


@dataclass(frozen=True)
class SamplingRequest:
    """One response to be sampled. prompt_tokens: int64 [P]; seed: of this response alone, whichever worker samples it."""

    prompt_tokens: np.ndarray
    prompt_index: int
    sample_index: int
    seed: int
    teacher: str | None = None


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    prompt_tokens: int64 [P]. response_tokens: int64 [T], the end token included where one was produced. behavior_logprobs:
    float32 [T], nats, under the distribution that sampled (student or mixture). truncated: the limit cut it, no end token.
    weight_version: the student weights that sampled it.
    """

    prompt_tokens: np.ndarray
    response_tokens: np.ndarray
    behavior_logprobs: np.ndarray
    truncated: bool
    weight_version: int
    prompt_index: int
    sample_index: int
    teacher: str | None = None

    @property
    def sequence(self) -> TokenSequence:
        tokens = np.concatenate([self.prompt_tokens, self.response_tokens])
        return TokenSequence(tokens, np.arange(len(tokens)) >= len(self.prompt_tokens), self.teacher)

    @property
    def summary(self) -> "RolloutSummary":
        return RolloutSummary(len(self.prompt_tokens), len(self.response_tokens), self.truncated, self.weight_version)


@dataclass(frozen=True)
class TeacherScores:
    """What the teacher says of the N targets of one sequence, at the run's temperature, over the shared vocabulary.

    logprobs, log_normalizers: float32 [N], nats, of some of the targets, the others not a number: they are there to check what is made of
    the states. hidden: [N, d], after the final norm, at no temperature, float32 or bfloat16 bits.
    """

    logprobs: np.ndarray
    log_normalizers: np.ndarray
    hidden: np.ndarray


@dataclass(frozen=True)
class EnsembleScores:
    """What several teachers say of the targets of one sequence, each by itself. scores: one for each teacher, in the order of the
    config; None where it does not speak for this sequence. At least one speaks.
    """

    scores: tuple[TeacherScores | None, ...]


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """The numpy view of a CPU tensor; bfloat16 becomes its bits in uint16."""
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """The inverse of `array_of`, a view, to be read and never written: arrays from the object store are shared."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


@dataclass(frozen=True)
class RolloutSummary:
    """The scalars of a rollout that the driver plans with; the rollout itself stays where it was made."""

    prompt_tokens: int
    response_tokens: int
    truncated: bool
    weight_version: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens
