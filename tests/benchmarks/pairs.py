"""The work of the side-by-side comparison: teacher, student and prompts, made from packages and seeds."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from launch.config import RunConfig
from launch.prepare import EMBEDDED_TEACHER, PreparedRun, prepare
from minirl.config.reader import read_config
from minirl.seeds import derive_seed
from minirl.training.data_order import DataOrder
from tests.benchmarks.protocol import RESPONSES_PER_PASS, Job
from tests.tiny import tiny_model

SEED = 10


@dataclass(frozen=True)
class ModelPair:
    """A teacher, a student and prompts.

    models: called with a directory; writes models and prompts there, and returns `teacher.model`, `student` and `data.train` of a run's
    config under the keys `teacher`, `student` and `train`. dtype: unless another one is asked for. prompts: in each update.
    """

    description: str
    models: Callable[[Path], dict]
    dtype: str
    prompts: int
    prompt_tokens: int
    response_tokens: int
    learning_rate: float
    kv_cache_gib: float = 0.5

    @property
    def trl_policy_gradient_weight(self) -> float:
        """The factor by which TRL weights its policy gradient: 1 over the passes of an update."""
        return RESPONSES_PER_PASS / self.prompts


def smollm2(directory: Path) -> dict:
    return {"teacher": EMBEDDED_TEACHER, "student": {"layers": list(range(0, 30, 4))}, "train": "embedded:chatterbot"}


def tiny(directory: Path) -> dict:
    teacher = tiny_model(directory / "teacher", vocab=8192, hidden=384, layers=7, heads=6, seed=1)
    student = tiny_model(directory / "student", vocab=8192, hidden=256, layers=2, heads=4, seed=2)
    return {"teacher": teacher, "student": {"model": student}, "train": random_prompts(directory, 8192, 400, 32)}


def smallest(directory: Path) -> dict:
    teacher = tiny_model(directory / "teacher", vocab=256, layers=2, seed=1)
    student = tiny_model(directory / "student", vocab=256, layers=1, seed=2)
    return {"teacher": teacher, "student": {"model": student}, "train": random_prompts(directory, 256, 60, 8)}


# `smallest` is for the tests.
PAIRS = {
    "smollm2": ModelPair("SmolLM2-135M-Instruct, student of its layers 0, 4, ..., 28 (56.6M)", smollm2, "bfloat16", 32, 128, 64, 1e-4),
    "tiny": ModelPair("random Llamas of 16M and 4M", tiny, "float32", 64, 40, 128, 1e-3),
    "smallest": ModelPair("random Llamas of 0.1M", smallest, "float32", 8, 12, 8, 1e-3, 0.0625),
}


def random_prompts(directory: Path, vocabulary: int, count: int, longest: int) -> str:
    """Write `count` prompts of random words, and return the path of the file."""
    random = np.random.default_rng(0)
    prompts = [random.integers(6, vocabulary, random.integers(longest // 4, longest)) for _ in range(count)]
    file = directory / "prompts.jsonl"
    records = ({"prompt": " ".join(f"t{word}" for word in prompt), "completion": "t6"} for prompt in prompts)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def make_job(name: str, updates: int, threads: int, directory: Path, dtype: str, policy_gradient_weight: float) -> Job:
    """Write the models, the prompts and the config into `directory`. Returns the job of `updates` updates."""
    pair = PAIRS[name]
    (directory / "ours").mkdir(parents=True, exist_ok=True)
    config = directory / "run.yaml"
    config.write_text(yaml.safe_dump(_settings(pair, updates, threads, directory, dtype, policy_gradient_weight)))
    prepared = prepare(read_config(RunConfig, config, []))
    prompts = [example.prompt.tokens.tolist() for example in prepared.data.train]
    order = DataOrder(len(prompts), derive_seed(SEED, "prompts"))  # the order in which the on-policy loop takes them
    prompts_by_update = [[prompts[index] for index in order.next(pair.prompts)] for _ in range(updates)]
    return Job(
        student=prepared.student,
        teacher=prepared.teachers[0],
        dtype=dtype,
        updates=prompts_by_update,
        texts=[[_text(prepared, prompt) for prompt in update] for update in prompts_by_update],
        held_out=[example.prompt.tokens.tolist() for example in prepared.data.test],
        end_tokens=list(prepared.end_tokens),
        max_response_tokens=pair.response_tokens,
        learning_rate=pair.learning_rate,
        policy_gradient_weight=policy_gradient_weight,
        seed=SEED,
        config=str(config),
        directory=str(directory),
    )


def _settings(pair: ModelPair, updates: int, threads: int, directory: Path, dtype: str, policy_gradient_weight: float) -> dict:
    """The run's config: one update from each iteration's samples, no mixture, no pre-training loss. All contestants can do this."""
    models = pair.models(directory)
    role = {"dtype": dtype}
    engine = role | {"kv_cache_gib": pair.kv_cache_gib}
    return {
        "directory": str(directory / "ours"),
        "seed": SEED,
        "teacher": {"model": models["teacher"]} | engine,
        "student": models["student"],
        "data": {
            "train": models["train"],
            "max_prompt_tokens": pair.prompt_tokens,
            "max_response_tokens": pair.response_tokens,
        },
        "objective": {"pretrain_coefficient": 0.0, "policy_gradient_coefficient": policy_gradient_weight},
        "rollout": engine,
        "learner": role,
        "cluster": {"device": "cpu", "threads_per_worker": threads},
        "stages": {
            "distill": {"iterations": updates, "prompts_per_iteration": pair.prompts, "learning_rate": pair.learning_rate},
        },
    }


def _text(prepared: PreparedRun, prompt: list[int]) -> str:
    """The prompt as text, for contestants that take text. Raises ValueError if the text has other tokens than the prompt."""
    text = prepared.tokenizer.decode(prompt)
    if prepared.tokenizer(text)["input_ids"] != prompt:
        raise ValueError(f"the text {text!r} has other tokens than its prompt; choose prompts that survive decoding and tokenizing")
    return text
