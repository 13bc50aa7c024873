"""A plain MiniLLM loop as a contestant: one process, Hugging Face `generate`, whole logits of both models.

The objective is the paper's: the policy gradient with the length-normalised future reward, plus the exact single-step reverse KL. Each
batch of samples serves one update, so the student that learns is the one that sampled, and every importance ratio is 1. With bfloat16 the
weights are float32 under autocast.
"""

import sys
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from minirl.model.loading import copy_tokenizer_files
from tests.benchmarks.protocol import RESPONSES_PER_PASS, Job, UpdateCounts, UpdateServer


class PlainLoop:
    """Samples, scores and learns the prompts of one update after the other."""

    def __init__(self, job: Job):
        torch.manual_seed(job.seed)
        self.job = job
        self.student = AutoModelForCausalLM.from_pretrained(job.student, dtype=torch.float32)
        self.teacher = AutoModelForCausalLM.from_pretrained(job.teacher, dtype=getattr(torch, job.dtype)).eval()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=job.learning_rate, weight_decay=0.0)
        self.updates = iter(job.updates)

    def update(self) -> UpdateCounts:
        prompts, starts = left_padded(next(self.updates))
        with torch.no_grad(), self.autocast():
            tokens = sample(self.student, prompts, starts, self.job)
        responses = tokens[:, prompts.shape[1] :]
        mask = response_mask(responses, self.job.end_tokens)
        attention = torch.cat([starts, mask], dim=1)
        count = mask.sum()
        self.optimizer.zero_grad()
        for rows in torch.arange(len(tokens)).split(RESPONSES_PER_PASS):
            with self.autocast():
                loss = self.loss(tokens[rows], attention[rows], mask[rows])
            (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        return UpdateCounts(len(tokens), int(starts.sum()), int(count))

    def loss(self, tokens: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
        """The loss, summed over the response tokens. tokens, attention: [rows, prompt + response]; mask: [rows, response]."""
        length, positions = mask.shape[1], position_ids(attention)
        inputs = {"input_ids": tokens, "attention_mask": attention, "position_ids": positions, "logits_to_keep": length + 1}
        log_q = self.student(**inputs, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        with torch.no_grad():
            log_p = self.teacher(**inputs, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        sampled = tokens[:, -length:].unsqueeze(-1)
        student, teacher = log_q.gather(-1, sampled).squeeze(-1), log_p.gather(-1, sampled).squeeze(-1)
        rewards = (teacher - student).detach() * mask
        future_rewards = rewards.flip(1).cumsum(1).flip(1) - rewards
        future_tokens = mask.flip(1).cumsum(1).flip(1) - mask
        advantages = future_rewards / future_tokens.clamp(min=1)
        ratio = (student - student.detach()).exp()
        reverse_kl = (log_q.exp() * (log_q - log_p)).sum(-1)
        return ((reverse_kl - self.job.policy_gradient_weight * advantages * ratio) * mask).sum()

    def export(self, directory: str) -> None:
        self.student.save_pretrained(directory)
        copy_tokenizer_files(self.job.student, directory)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.job.dtype == "bfloat16")


def left_padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids [prompts, longest], padded on the left, and a mask of the same shape that is 0 at padding."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    return tokens, torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def sample(model: PreTrainedModel, prompts: Tensor, attention: Tensor, job: Job) -> Tensor:
    """Prompts with sampled responses [prompts, longest + response], at temperature 1, without top-k or top-p."""
    return model.generate(
        prompts, attention_mask=attention, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        max_new_tokens=job.max_response_tokens, eos_token_id=job.end_tokens, pad_token_id=job.end_tokens[0],
    )  # fmt: skip


def response_mask(responses: Tensor, end_tokens: list[int]) -> Tensor:
    """1 up to the first end token, inclusive; 0 after it. Same shape as `responses`."""
    ended = torch.isin(responses, torch.tensor(end_tokens)).int()
    return (ended.cumsum(1) - ended == 0).int()


def position_ids(attention: Tensor) -> Tensor:
    return (attention.cumsum(1) - 1).clamp(min=0)


if __name__ == "__main__":
    server, loop = UpdateServer(), PlainLoop(Job.read(sys.argv[1]))
    server.serve(loop.update, loop.export)
