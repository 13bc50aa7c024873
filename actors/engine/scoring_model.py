"""A vLLM pooling model that returns, for each token, the teacher's hidden state, log-normaliser and log-prob.

The row of position i holds, in float32: the hidden state after the final norm (d), the log-normaliser of the distribution that
predicts token i + 1, and that token's log-prob. The last two come from the wrapped model's own `compute_logits` (its norm, bias,
scale and soft-cap), so that a learner that rebuilds them from `hidden @ head.T` has an independent check. Only the first of every
`check_every` rows has them; in the other rows they are NaN. That suffices: a wrong head shows in any row, and the learner multiplies
by the head again anyway.

Configured through `hf_overrides`, key `scoring`: architecture, shared_vocabulary, check_every. A request sets the first row that it needs
and the temperature of its distributions (`PoolingParams.extra_kwargs`: `first_row`, `temperature`). The last row predicts a token that is
not known, so it is left out.
"""

import copy
from collections.abc import Iterable

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler import PoolingParamsUpdate
from vllm.model_executor.layers.pooler.tokwise import AllPool, TokenPooler
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.v1.pool.metadata import PoolingMetadata

from actors.engine.head_columns import head_columns


class ScoringForCausalLM(nn.Module):
    """The teacher's network with a pooler that scores tokens."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.network = init_vllm_registered_model(
            vllm_config,
            prefix=maybe_prefix(prefix, "network"),
            hf_config=copy.deepcopy(config),
            architectures=[config.scoring["architecture"]],
        )
        self.shared_vocabulary, self.check_every = config.scoring["shared_vocabulary"], config.scoring["check_every"]
        self.pooler = ScoringPooler(AllPool(), self.score)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.network.embed_input_ids(input_ids)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None, **_) -> torch.Tensor:
        return self.network(input_ids, positions, intermediate_tensors, inputs_embeds)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return {f"network.{name}" for name in self.network.load_weights(weights)}

    def score(self, hidden: list[torch.Tensor | None], metadata: PoolingMetadata) -> list[torch.Tensor | None]:
        """The rows of each finished sequence; None for a sequence with more chunks to come."""
        requests = [parameters.extra_kwargs or {} for parameters in metadata.pooling_params]
        first_rows = [request.get("first_row", 0) for request in requests]
        rows = [None if states is None else states[first:-1] for states, first in zip(hidden, first_rows, strict=True)]
        next_tokens = [tokens[first + 1 :] for tokens, first in zip(metadata.get_prompt_token_ids_cpu(), first_rows, strict=True)]
        finished = [i for i, states in enumerate(rows) if states is not None]
        if not finished:
            return rows
        states = torch.cat([rows[i] for i in finished])
        tokens = torch.cat([next_tokens[i] for i in finished]).to(states.device, torch.int64)
        checked = torch.cat([torch.arange(0, len(rows[i]), device=states.device) % self.check_every == 0 for i in finished])
        scored = torch.cat([states.float(), states.new_full((len(states), 2), torch.nan, dtype=torch.float32)], dim=-1)
        divisors = torch.cat([torch.full((len(rows[i]),), requests[i].get("temperature", 1.0), device=states.device) for i in finished])
        checked_columns = (column[checked] for column in (states, tokens, divisors))
        scored[checked, -2:] = head_columns(self.network, *checked_columns, self.shared_vocabulary)
        for i, scored_rows in zip(finished, scored.split([len(rows[i]) for i in finished]), strict=True):
            rows[i] = scored_rows
        return rows


class ScoringPooler(TokenPooler):
    """vLLM's pooler over all tokens of a sequence, with `ScoringForCausalLM.score` as its head."""

    def get_supported_tasks(self):
        return {"token_embed"}

    def get_pooling_updates(self, task) -> PoolingParamsUpdate:
        return PoolingParamsUpdate(requires_token_ids=True)
