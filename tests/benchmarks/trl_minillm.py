"""TRL's MiniLLM trainer as a contestant. Runs in an environment of its own (requirements-trl.txt), so it imports nothing of the project.

Its fastest settings on a CPU, where that changes nothing of what it computes: no gradient checkpointing, no logging. Its loss differs from
the paper's in what it cannot be told: the return of a token holds its own reward, and padding behind a response is not masked.
As read in its code, n passes an update also weigh its policy gradient by 1/n against the single-step term, so its curve of the reverse KL
belongs to another objective.
"""

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.minillm import MiniLLMConfig, MiniLLMTrainer

from tests.benchmarks.turns import Job, Turns, Worked

RESPONSES_PER_PASS = 8


class CountingTrainer(MiniLLMTrainer):
    """Tells what an update was made of."""

    def _generate_and_score_completions(self, inputs):
        outputs = super()._generate_and_score_completions(inputs)
        prompts, responses = outputs["prompt_mask"], outputs["completion_mask"]
        self.worked = Worked(len(responses), int(prompts.sum()), int(responses.sum()))
        return outputs


class OneAtATime(TrainerCallback):
    def __init__(self, turns: Turns):
        self.turns, self.trainer = turns, None

    def on_step_begin(self, *arguments, **others):
        if not self.turns.next(self.export):
            sys.exit()

    def on_step_end(self, *arguments, **others):
        self.turns.done(self.trainer.worked)

    def on_train_end(self, *arguments, **others):
        self.turns.next(self.export)

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
    turns, job = Turns(), Job.read(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(job.student)
    callback = OneAtATime(turns)
    callback.trainer = CountingTrainer(
        # float32 weights: autocast computes in bfloat16, and the optimizer loses no small step
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
