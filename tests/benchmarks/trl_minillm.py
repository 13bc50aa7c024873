"""TRL's MiniLLM trainer as a contestant, in a separate environment (requirements-trl.txt).

The environment does not have the project's packages, so this module imports nothing of the project except the protocol. The trainer runs
with the fastest settings on a CPU that do not change its results: no gradient checkpointing, no logging. Its loss differs from the paper's
in two points that no setting changes: the return of a token includes the token's own reward, and padding behind a response is not masked.
According to its code, n passes an update also weight its policy gradient by 1/n against the single-step term. Beside it, the other
contestants therefore weight theirs by the same factor (`ModelPair.trl_policy_gradient_weight`).
"""

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.minillm import MiniLLMConfig, MiniLLMTrainer

from tests.benchmarks.protocol import RESPONSES_PER_PASS, Job, UpdateCounts, UpdateServer


class CountingTrainer(MiniLLMTrainer):
    """Keeps the counts of the last update."""

    def _generate_and_score_completions(self, inputs):
        outputs = super()._generate_and_score_completions(inputs)
        prompts, responses = outputs["prompt_mask"], outputs["completion_mask"]
        self.counts = UpdateCounts(len(responses), int(prompts.sum()), int(responses.sum()))
        return outputs


class UpdateOnRequest(TrainerCallback):
    """Lets the trainer take each optimizer step only when the coordinator requests it."""

    def __init__(self, server: UpdateServer):
        self.server, self.trainer = server, None

    def on_step_begin(self, *arguments, **others):
        if not self.server.wait_for_update(self.export):
            sys.exit()

    def on_step_end(self, *arguments, **others):
        self.server.finish_update(self.trainer.counts)

    def on_train_end(self, *arguments, **others):
        self.server.wait_for_update(self.export)

    def export(self, directory: str) -> None:
        self.trainer.model.save_pretrained(directory)
        self.trainer.processing_class.save_pretrained(directory)


def settings(job: Job) -> MiniLLMConfig:
    rollouts = len(job.updates[0])
    return MiniLLMConfig(
        output_dir=f"{job.directory}/trl",
        per_device_train_batch_size=RESPONSES_PER_PASS,
        gradient_accumulation_steps=rollouts // RESPONSES_PER_PASS,
        num_generations=1,
        max_completion_length=job.max_response_tokens,
        temperature=1.0,
        gamma=1.0,
        shuffle_dataset=False,
        learning_rate=job.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_steps=len(job.updates),
        seed=job.seed,
        bf16=job.dtype == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


def main() -> None:
    server, job = UpdateServer(), Job.read(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(job.student)
    callback = UpdateOnRequest(server)
    callback.trainer = CountingTrainer(
        # float32 weights under bfloat16 autocast: the optimizer does not lose small steps to rounding
        model=AutoModelForCausalLM.from_pretrained(job.student, dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(job.teacher, dtype=getattr(torch, job.dtype)),
        args=settings(job),
        train_dataset=Dataset.from_dict({"prompt": [text for texts in job.texts for text in texts]}),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    callback.trainer.train()


if __name__ == "__main__":
    main()
