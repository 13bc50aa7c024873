"""Held-out evaluation of the contestants' students: exact reverse KL, by plain Hugging Face in float32."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.benchmarks.plain import left_padded, position_ids, response_mask, sample
from tests.benchmarks.protocol import Job

RESPONSES_PER_CALL, RESPONSES_PER_PASS = 16, 2  # few responses a pass, so that the allocator reuses the memory of their logits


class HeldOutEvaluator:
    """Measures KL(student || teacher) in nats per token, pooled over one response to each of the first `prompts` held-out prompts."""

    def __init__(self, job: Job, prompts: int):
        self.job, self.prompts = job, job.held_out[:prompts]
        self.teacher = load(job.teacher)

    @torch.no_grad()
    def reverse_kl(self, student: Path) -> float:
        """The reverse KL of a student. Samples at temperature 1, with the same seed for every student."""
        model, total, tokens = load(student), 0.0, 0
        torch.manual_seed(self.job.seed)
        for first in range(0, len(self.prompts), RESPONSES_PER_CALL):
            prompts, starts = left_padded(self.prompts[first : first + RESPONSES_PER_CALL])
            sequences = sample(model, prompts, starts, self.job)
            mask = response_mask(sequences[:, prompts.shape[1] :], self.job.end_tokens)
            attention = torch.cat([starts, mask], dim=1)
            for rows in torch.arange(len(mask)).split(RESPONSES_PER_PASS):
                total += self._reverse_kl_sum(model, sequences[rows], attention[rows], mask[rows])
            tokens += int(mask.sum())
        return total / tokens

    def _reverse_kl_sum(self, student: PreTrainedModel, tokens: Tensor, attention: Tensor, mask: Tensor) -> float:
        """Reverse KL in nats, summed over the response tokens."""
        log_q, log_p = (log_probs(model, tokens, attention, mask.shape[1]) for model in (student, self.teacher))
        return float(((log_q.exp() * (log_q - log_p)).sum(-1) * mask).sum())


def load(directory: str | Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def log_probs(model: PreTrainedModel, tokens: Tensor, attention: Tensor, last: int) -> Tensor:
    """Log-probs [responses, last, vocabulary] at the positions of the last `last` tokens."""
    positions = position_ids(attention)
    logits = model(tokens, attention_mask=attention, position_ids=positions, logits_to_keep=last + 1, use_cache=False).logits
    return logits[:, :-1].float().log_softmax(-1)
