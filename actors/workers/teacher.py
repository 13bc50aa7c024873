"""One teacher worker: a vLLM pooling engine that scores every target token of a sequence under a frozen teacher."""

import numpy as np
import torch

from actors.config import TeacherConfig
from actors.engine.engine import architecture_of, read_model_config, start_engine, stop_engine
from minirl.errors import RunError
from minirl.types import TeacherScores, TokenSequence, numpy_from_tensor


class TeacherWorker:
    """Scores token sequences under a frozen model.

    model: a directory in Hugging Face format. shared_vocabulary: distributions are over the token ids below it. temperature: of rollouts;
    applied to log-probs and log-normalisers, not to hidden states. max_model_len: the longest sequence, in tokens.
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
            "architecture": architecture_of(network, model), "shared_vocabulary": shared_vocabulary, "check_every": config.check_every,
        }  # fmt: skip
        self.temperature = temperature
        self._shared_vocabulary, self._max_model_len = shared_vocabulary, max_model_len
        self._dtype = getattr(torch, config.dtype)
        self._engine = start_engine(
            model,
            config,
            device=device,
            threads=threads,
            max_model_len=max_model_len,
            overrides={"architectures": ["ScoringForCausalLM"], "scoring": settings},
            runner="pooling",
            enable_prefix_caching=False,  # a cached token would have no hidden state
            enable_chunked_prefill=False,  # every sequence in one pass
            max_num_batched_tokens=max(config.micro_batch_tokens, max_model_len),
        )
        self._width = self._engine.collective_rpc("scored_width")[0]

    def score(self, sequences: list[TokenSequence], temperatures: list[float] | None = None) -> list[TeacherScores]:
        """Scores of each sequence's targets, in order of the sequences. temperatures: one for each sequence; None: the worker's for all.

        Raises RunError if a sequence is too long or a target is outside the shared vocabulary.
        """
        from vllm import PoolingParams

        for sequence in sequences:
            self._require_scorable(sequence)
        temperatures = temperatures or [self.temperature] * len(sequences)
        with_targets = [(s, temperature) for s, temperature in zip(sequences, temperatures, strict=True) if s.targets]
        outputs = iter(
            self._engine.encode(
                [{"prompt_token_ids": sequence.tokens.tolist()} for sequence, _ in with_targets],
                pooling_params=[
                    PoolingParams(extra_kwargs={"first_row": _first_row(sequence), "temperature": temperature})
                    for sequence, temperature in with_targets
                ],
                pooling_task="token_embed",
                use_tqdm=False,
            )
            if with_targets
            else ()
        )
        return [self._to_scores(sequence, next(outputs).outputs.data if sequence.targets else None) for sequence in sequences]

    def close(self) -> None:
        """Stops the engine and the processes that it started."""
        stop_engine(self._engine)

    def _to_scores(self, sequence: TokenSequence, rows: torch.Tensor | None) -> TeacherScores:
        if rows is None:
            empty = np.empty(0, np.float32)
            return TeacherScores(empty, empty, numpy_from_tensor(torch.empty(0, self._width, dtype=self._dtype)))
        rows = rows[np.flatnonzero(sequence.is_target) - 1 - _first_row(sequence)]
        hidden, normalizers, logprobs = rows.split([self._width, 1, 1], dim=-1)
        # A bfloat16 state is exact in the pooler's float32, so converting back loses nothing and halves the bytes to ship.
        return TeacherScores(
            numpy_from_tensor(logprobs.squeeze(-1)), numpy_from_tensor(normalizers.squeeze(-1)), numpy_from_tensor(hidden.to(self._dtype))
        )

    def _require_scorable(self, sequence: TokenSequence) -> None:
        if len(sequence.tokens) > self._max_model_len:
            raise RunError(f"a sequence of {len(sequence.tokens)} tokens exceeds the teacher engine's {self._max_model_len}")
        highest = int(sequence.tokens[sequence.is_target].max(initial=-1))
        if highest >= self._shared_vocabulary:
            raise RunError(
                f"the target token {highest} is not among the {self._shared_vocabulary} token ids that student and teacher share"
            )


def _first_row(sequence: TokenSequence) -> int:
    """The first position whose row is needed: the one before the first target."""
    return int(np.argmax(sequence.is_target)) - 1
