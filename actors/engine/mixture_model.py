"""A vLLM model that samples from the mixture (1 - a) student + a teacher, over the vocabulary that the two share.

It is configured through vLLM's `hf_overrides`, key `mixture`: teacher (a directory, or None), student_architecture, temperature,
shared_vocabulary, capture (the fields of `ScoreCapture`, or None). The share a (`teacher_share`) may change between calls. At a = 0 the
teacher's forward pass is skipped, at a = 1 the student's. A skipped network leaves its part of the KV cache unwritten, so the prefix cache
must be reset whenever a changes.

With `capture` the engine returns the teacher's scores of the tokens that it samples. While it captures, the teacher runs at a = 0 too.
"""

import copy
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models.utils import maybe_prefix

from actors.engine.captured_states import CapturedStates
from actors.engine.head_columns import head_columns
from actors.engine.model_runner import sampled_places
from actors.weights.loaded_model import head_width
from minirl.objective.mixture import mixture_logprobs
from minirl.types import TeacherScores, numpy_from_tensor


class MixtureForCausalLM(nn.Module):
    """Student and teacher in one engine: they share its KV-cache manager and read the same tokens."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        settings = config.mixture
        self.vllm_config = vllm_config
        self.temperature, self.shared_vocabulary = settings["temperature"], settings["shared_vocabulary"]
        self.vocabulary = config.vocab_size
        self.student = _build_network(
            vllm_config, maybe_prefix(prefix, "student"), copy.deepcopy(config), [settings["student_architecture"]]
        )
        self.teacher, self.teacher_path = None, settings["teacher"]
        if self.teacher_path is not None:
            teacher_config = AutoConfig.from_pretrained(self.teacher_path)
            teacher_config.head_dtype = getattr(config, "head_dtype", None)
            self.teacher = _build_network(vllm_config, maybe_prefix(prefix, "teacher"), teacher_config, teacher_config.architectures)
            self.teacher_width = head_width(self.teacher)
        self.student_width = head_width(self.student)
        self.teacher_loaded = False
        self.captured, self.check_every = None, 0
        if (capture := settings["capture"]) is not None:
            slots = min(capture["requests"], vllm_config.scheduler_config.max_num_seqs)
            self.captured = CapturedStates(slots, capture["response_tokens"], self.teacher_width)
            self.check_every = capture["check_every"]
        self._runner: Any = None  # vLLM's model runner while the states are captured
        # While the engine warms up, both networks must run, so that memory is measured and graphs are captured for both.
        self.teacher_share = 0.0 if self.teacher is None else 0.5

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.student.embed_input_ids(input_ids)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None, **_) -> torch.Tensor:
        """Final hidden states [tokens, student width + teacher width]; a skipped network has zeros."""
        if self.teacher is None:
            return self.student(input_ids, positions, intermediate_tensors, None)
        # A network's output is copied before the other network runs. Their CUDA graphs share one memory pool, and vLLM gives the memory of
        # an output back to it, so the teacher's graphs may overwrite the student's states.
        joint = None
        for network, share, columns in (
            (self.student, 1 - self.teacher_share, slice(self.student_width)),
            (self.teacher, self.teacher_share or float(self._runner is not None), slice(self.student_width, None)),
        ):
            if share > 0:
                states = network(input_ids, positions, intermediate_tensors, None)
                joint = self._joint_tensor(states) if joint is None else joint
                joint[:, columns] = states
        return joint

    def _joint_tensor(self, states: torch.Tensor) -> torch.Tensor:
        new = states.new_zeros if self.teacher_share in (0, 1) else states.new_empty  # a skipped network leaves its part as it is
        return new(len(states), self.student_width + self.teacher_width)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Log-probs of the mixture, float32 [tokens, student vocabulary], -inf above the shared one. None on a rank without logits."""
        if self._runner is not None:
            self.captured.add(*sampled_places(self._runner), hidden[..., self.student_width :])
        student = teacher = None
        if self.teacher_share < 1:
            student = self._logprobs(self.student, hidden[..., : self.student_width])
        if self.teacher_share > 0:
            teacher = self._logprobs(self.teacher, hidden[..., self.student_width :])
        if student is None and teacher is None:
            return None
        mixed = mixture_logprobs(student, teacher, self.teacher_share)
        return nn.functional.pad(mixed, (0, self.vocabulary - self.shared_vocabulary), value=float("-inf"))

    def _logprobs(self, network: nn.Module, hidden: torch.Tensor) -> torch.Tensor | None:
        logits = network.compute_logits(hidden.contiguous())
        if logits is None:
            return None
        return (logits[..., : self.shared_vocabulary].float() / self.temperature).log_softmax(-1)

    def set_sampling(self, teacher_share: float, capturing_runner: Any | None) -> None:
        """Sets the share, and whether the teacher's states are captured. capturing_runner: vLLM's model runner; None captures nothing."""
        self.teacher_share, self._runner = teacher_share, capturing_runner
        if capturing_runner is not None:
            self.captured.clear()

    @torch.inference_mode()
    def take_scores(self, finished: list[tuple[str, list[int]]]) -> list[TeacherScores]:
        """The teacher's scores of responses that have ended. finished: of each vLLM's request id and the response's tokens.

        The log-normalisers and log-probs are the head's, as in `scoring_model`. Under tensor parallelism all ranks must call it.
        """
        states = [self.captured.take(request, len(tokens)) for request, tokens in finished]
        checked = torch.cat([rows[:: self.check_every] for rows in states])
        next_tokens = torch.tensor([token for _, tokens in finished for token in tokens[:: self.check_every]], device=checked.device)
        temperatures = torch.full((len(checked),), self.temperature, dtype=torch.float32, device=checked.device)
        columns = head_columns(self.teacher, checked, next_tokens, temperatures, self.shared_vocabulary).cpu()
        by_response = columns.split([len(rows[:: self.check_every]) for rows in states])
        hidden = torch.cat(states).cpu().split([len(rows) for rows in states])  # a copy on a CPU too: the engine writes here again
        return [_scores(rows, checked_columns, self.check_every) for rows, checked_columns in zip(hidden, by_response, strict=True)]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads the student from `weights`. The first call also loads the teacher, from its directory."""
        loaded = {f"student.{name}" for name in self.student.load_weights(weights)}
        if self.teacher is not None and not self.teacher_loaded:
            loader = DefaultModelLoader(self.vllm_config.load_config)
            source = DefaultModelLoader.Source(self.teacher_path, revision=None, fall_back_to_pt=False)
            loaded |= {f"teacher.{name}" for name in self.teacher.load_weights(loader._get_weights_iterator(source))}
            self.teacher_loaded = True
        return loaded


def _scores(hidden: torch.Tensor, columns: torch.Tensor, check_every: int) -> TeacherScores:
    """hidden: [T, d], on the host. columns: log-normaliser and log-prob of every `check_every`-th token."""
    normalizers, logprobs = torch.full((2, len(hidden)), torch.nan, dtype=torch.float32, device="cpu")
    normalizers[::check_every], logprobs[::check_every] = columns.T
    return TeacherScores(numpy_from_tensor(logprobs), numpy_from_tensor(normalizers), numpy_from_tensor(hidden))


def _build_network(vllm_config: VllmConfig, prefix: str, config, architectures: list[str]) -> nn.Module:
    network_config = vllm_config.with_hf_config(config, architectures=architectures)
    # vLLM replaces no more than the config itself. The rest would still be the student's: the heads and layers that the transformers
    # backend reads, and the sliding window that a layer takes if its class sets none.
    model_config, network_config.cache_config = network_config.model_config, copy.copy(vllm_config.cache_config)
    text_config = model_config.hf_text_config = model_config.hf_config.get_text_config()
    model_config.model_arch_config = model_config.get_model_arch_config()
    has_one_window = set(getattr(text_config, "layer_types", None) or ()) <= {"sliding_attention"}
    network_config.cache_config.sliding_window = model_config.get_sliding_window() if has_one_window else None
    # If vLLM compiles, the two networks need different names in its cache of compiled code.
    with set_model_tag(prefix) if prefix.endswith("teacher") else nullcontext():
        return initialize_model(vllm_config=network_config, prefix=prefix)
