"""One teacher worker: a vLLM pooling engine that says of every target token how the teacher would have predicted it."""

import numpy as np
import torch

from actors.config import TeacherConfig
from actors.engine.engine import architecture_of, read_model_config, start_engine, stop_engine
from minirl.errors import RunError
from minirl.types import TeacherScores, TokenSequence, array_of


class TeacherWorker:
    """Scores token sequences under a frozen model.

    model: a directory in Hugging Face format. shared_vocabulary: distributions are over the token ids below it. temperature: of
    log-probs and log-normalisers; hidden states know none. max_model_len: the longest sequence.
    """

    def __init__(
        self,
        model: str,
        config: TeacherConfig,
        *,
        device: str,
        threads: int,
        max_model_len: int,
        shared_vocabulary: int,
        temperature: float,
    ):
        network = read_model_config(model, max_model_len)
        settings = {
            "architecture": architecture_of(network, model), "temperature": temperature, "shared_vocabulary": shared_vocabulary,
            "check_every": config.check_every,
        }  # fmt: skip
        self._width, self._shared_vocabulary, self._max_model_len = network.hidden_size, shared_vocabulary, max_model_len
        self._dtype = getattr(torch, config.dtype)
        self._engine = start_engine(
            model,
            config,
            device=device,
            threads=threads,
            max_model_len=max_model_len,
            overrides={"architectures": ["ScoringForCausalLM"], "scoring": settings},
            runner="pooling",
            enable_prefix_caching=False,  # a cached token's hidden state would be missing
            enable_chunked_prefill=False,  # every sequence in one pass
            max_num_batched_tokens=max(config.micro_batch_tokens, max_model_len),
        )

    def score(self, sequences: list[TokenSequence]) -> list[TeacherScores]:
        """Score every sequence's targets, in order. Raises RunError where a sequence is too long or a target is not shared."""
        from vllm import PoolingParams

        for sequence in sequences:
            self._check(sequence)
        asked = [sequence for sequence in sequences if sequence.targets]
        outputs = iter(
            self._engine.encode(
                [{"prompt_token_ids": sequence.tokens.tolist()} for sequence in asked],
                pooling_params=[PoolingParams(extra_kwargs={"first_row": _first_row(sequence)}) for sequence in asked],
                pooling_task="token_embed",
                use_tqdm=False,
            )
            if asked
            else ()
        )
        return [self._scores(sequence, next(outputs).outputs.data if sequence.targets else None) for sequence in sequences]

    def close(self) -> None:
        """Stop the engine and the processes that it started."""
        stop_engine(self._engine)

    def _scores(self, sequence: TokenSequence, rows: torch.Tensor | None) -> TeacherScores:
        if rows is None:
            nothing = np.empty(0, np.float32)
            return TeacherScores(nothing, nothing, array_of(torch.empty(0, self._width, dtype=self._dtype)))
        rows = rows[np.flatnonzero(sequence.is_target) - 1 - _first_row(sequence)]
        hidden, normalizers, logprobs = rows.split([self._width, 1, 1], dim=-1)
        # The pooler's float32 is exact for a bfloat16 state, and so is the way back: half the bytes to ship.
        return TeacherScores(array_of(logprobs.squeeze(-1)), array_of(normalizers.squeeze(-1)), array_of(hidden.to(self._dtype)))

    def _check(self, sequence: TokenSequence) -> None:
        if len(sequence.tokens) > self._max_model_len:
            raise RunError(f"a sequence of {len(sequence.tokens)} tokens exceeds the teacher engine's {self._max_model_len}")
        highest = int(sequence.tokens[sequence.is_target].max(initial=-1))
        if highest >= self._shared_vocabulary:
            raise RunError(
                f"the target token {highest} is not among the {self._shared_vocabulary} token ids that student and teacher share"
            )


def _first_row(sequence: TokenSequence) -> int:
    """The first position whose row is wanted: the one before the first target."""
    return int(np.argmax(sequence.is_target)) - 1
