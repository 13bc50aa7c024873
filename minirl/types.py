"""The values that the roles exchange: prompts, sequences, rollouts and teacher scores, as token ids in numpy arrays.

Ray's object store shares numpy arrays between processes without a copy.

Worked example, a prompt of 3 tokens and a response of 2 (the end token, 2, included):

    prompt    tokens [7, 8, 9]
    rollout   response_tokens [5, 2], behavior_logprobs [-1.2, -0.3]: under the distribution that sampled them
    sequence  tokens [7, 8, 9, 5, 2], is_target [0, 0, 0, 1, 1]: the input of a model that scores or learns
    scores    for the two targets, in order: logprobs [-1.0, -0.2], log_normalizers [11.3, 9.8], hidden [2, d]; row i is the
              teacher's state *before* it reads target i, so `hidden[i] @ head.T` are the logits that predict target i

bfloat16 has no numpy type: a uint16 array holds its bits (`numpy_from_tensor`, `tensor_from_numpy`).
"""

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True)
class Prompt:
    """A prompt ready to sample from.

    tokens: int64 [P].
    index: the record's position in its data set; part of every sampling seed.
    references: gold responses as text; empty if the record has none.
    gold: int64 [G], the tokens of the gold response with its end token; empty if the record has none.
    teacher: the id of the teacher that scores this prompt, if each record names one of several teachers; else None.
    text: the prompt as plain text without the template's markup, for people and LLM judges.
    """

    tokens: np.ndarray
    index: int
    references: tuple[str, ...] = ()
    gold: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    teacher: str | None = None
    text: str = ""


@dataclass(frozen=True)
class TokenSequence:
    """Tokens, and which of them are targets.

    tokens: int64 [n]. is_target: bool [n], False at 0, because no position predicts the first token.
    teacher: as in `Prompt`; None: every teacher of the run.
    """

    tokens: np.ndarray
    is_target: np.ndarray
    teacher: str | None = None

    @property
    def targets(self) -> int:
        """The number of targets."""
        return int(self.is_target.sum())


@dataclass(frozen=True)
class SamplingRequest:
    """One response to sample. prompt_tokens: int64 [P]; seed: of this response alone, the same on every worker; teacher: as in `Prompt`."""

    prompt_tokens: np.ndarray
    prompt_index: int
    sample_index: int
    seed: int
    teacher: str | None = None


@dataclass(frozen=True)
class RolloutSummary:
    """The scalars of a rollout that the driver plans with. The rollout itself stays on the node that sampled it."""

    prompt_tokens: int
    response_tokens: int
    truncated: bool
    weight_version: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    prompt_tokens: int64 [P].
    response_tokens: int64 [T], with the end token if one was sampled.
    behavior_logprobs: float32 [T], nats, under the distribution that sampled the tokens (student or mixture).
    truncated: the length limit ended the response, so it has no end token.
    weight_version: the version of the student weights that sampled it.
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
        """Prompt and response, with the response tokens as targets."""
        tokens = np.concatenate([self.prompt_tokens, self.response_tokens])
        return TokenSequence(tokens, np.arange(len(tokens)) >= len(self.prompt_tokens), self.teacher)

    @property
    def summary(self) -> RolloutSummary:
        return RolloutSummary(len(self.prompt_tokens), len(self.response_tokens), self.truncated, self.weight_version)


@dataclass(frozen=True)
class TeacherScores:
    """The teacher's scores of the N targets of one sequence, over the shared vocabulary.

    logprobs, log_normalizers: float32 [N], nats, at the run's temperature for a rollout and at 1 for a fixed sequence, for some of the
    targets; NaN for the others. They check the log-probs that the learner computes from `hidden`.
    hidden: [N, d], float32 or bfloat16 bits, after the final norm; no temperature is applied.
    """

    logprobs: np.ndarray
    log_normalizers: np.ndarray
    hidden: np.ndarray


@dataclass(frozen=True)
class EnsembleScores:
    """The scores of several teachers for the targets of one sequence. scores: one for each teacher, in the order of the config; None for
    a teacher that does not score this sequence. At least one is not None.
    """

    scores: tuple[TeacherScores | None, ...]


def numpy_from_tensor(tensor: torch.Tensor) -> np.ndarray:
    """The numpy view of a CPU tensor; bfloat16 becomes its bits in uint16."""
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def tensor_from_numpy(array: np.ndarray) -> torch.Tensor:
    """The inverse of `numpy_from_tensor`. It is a view: read it and never write it, because arrays from the object store are shared."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
