"""MiniLLM as one would write it in an afternoon: one process, Hugging Face `generate`, whole logits of both models.

The objective is the paper's: the normalised future reward on the policy gradient, beside the exact single-step reverse KL. One update
follows each batch of samples, so the student that learns is the one that sampled and every importance ratio is 1.
In bfloat16 the weights are float32 under autocast.
"""

import sys
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from minirl.model.loading import copy_tokenizer_files
from tests.benchmarks.turns import Job, Turns, Worked

RESPONSES_PER_PASS = 8


class PlainLoop:
    def __init__(self, job: Job):
        torch.manual_seed(job.seed)
        self.job = job
        self.student = AutoModelForCausalLM.from_pretrained(job.student, dtype=torch.float32)
        self.teacher = AutoModelForCausalLM.from_pretrained(job.teacher, dtype=getattr(torch, job.dtype)).eval()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=job.learning_rate, weight_decay=0.0)
        self.updates = iter(job.updates)

    def update(self) -> Worked:
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
        return Worked(len(tokens), int(starts.sum()), int(count))

    def loss(self, tokens: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
        """Summed over the response tokens of these rows."""
        kept, positions = mask.shape[1], position_ids(attention)
        inputs = {"input_ids": tokens, "attention_mask": attention, "position_ids": positions, "logits_to_keep": kept + 1}
        log_q = self.student(**inputs, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        with torch.no_grad():
            log_p = self.teacher(**inputs, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        chosen = tokens[:, -kept:].unsqueeze(-1)
        student, teacher = log_q.gather(-1, chosen).squeeze(-1), log_p.gather(-1, chosen).squeeze(-1)
        rewards = (teacher - student).detach() * mask
        after = rewards.flip(1).cumsum(1).flip(1) - rewards
        left = mask.flip(1).cumsum(1).flip(1) - mask
        advantages = after / left.clamp(min=1)
        ratio = (student - student.detach()).exp()
        reverse_kl = (log_q.exp() * (log_q - log_p)).sum(-1)
        return ((reverse_kl - advantages * ratio) * mask).sum()

    def export(self, directory: str) -> None:
        self.student.save_pretrained(directory)
        copy_tokenizer_files(self.job.student, directory)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.job.dtype == "bfloat16")


def left_padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """[prompts, longest] ids, and 1 where they are not padding."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    return tokens, torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def sample(model: PreTrainedModel, prompts: Tensor, attention: Tensor, job: Job) -> Tensor:
    """Prompts and responses at temperature 1, nothing cut from the distribution."""
    return model.generate(
        prompts, attention_mask=attention, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        max_new_tokens=job.max_response_tokens, eos_token_id=job.end_tokens, pad_token_id=job.end_tokens[0],
    )  # fmt: skip


def response_mask(responses: Tensor, end_tokens: list[int]) -> Tensor:
    """1 up to the first end token, that included."""
    ended = torch.isin(responses, torch.tensor(end_tokens)).int()
    return (ended.cumsum(1) - ended == 0).int()


def position_ids(attention: Tensor) -> Tensor:
    return (attention.cumsum(1) - 1).clamp(min=0)


if __name__ == "__main__":
    turns, loop = Turns(), PlainLoop(Job.read(sys.argv[1]))
    turns.serve(loop.update, loop.export)
