"""Fixtures that start each vLLM engine only once (5 to 20 s each), and Hugging Face references to compare engines with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors.config import RolloutConfig
from actors.weights.packed import checksum, pack
from actors.workers.rollout import RolloutWorker, SamplingRequest
from minirl.types import Rollout
from tests.tiny import END_TOKEN, tiny_model

MAX_LENGTH = 256


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Builds a tiny model, once for each combination of arguments."""
    built: dict[str, str] = {}

    def build(family: str, **shape) -> str:
        key = f"{family} {sorted(shape.items())}"
        if key not in built:
            built[key] = tiny_model(tmp_path_factory.mktemp(family), family, **shape)
        return built[key]

    return build


def rollout_worker(student: str, teacher: str | None = None, **arguments) -> RolloutWorker:
    """A float32 worker on one CPU thread with small caches."""
    config = RolloutConfig(dtype="float32", kv_cache_gib=0.125, tensor_parallel=arguments.pop("tensor_parallel", 1))
    defaults = {"device": "cpu", "threads": 1, "max_model_len": MAX_LENGTH, "shared_vocabulary": 512, "end_tokens": (END_TOKEN,)}
    return RolloutWorker(student, teacher, config, **(defaults | arguments))


@pytest.fixture(scope="session")
def open_worker() -> Callable[..., RolloutWorker]:
    """Starts workers that live until the session ends: a single-device engine runs inside this process and cannot be stopped."""
    workers: list[RolloutWorker] = []

    def start(*arguments, **named) -> RolloutWorker:
        workers.append(rollout_worker(*arguments, **named))
        return workers[-1]

    return start


def hugging_face(directory: str | Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def requests(count: int = 6, vocab: int = 512, seed: int = 0) -> list[SamplingRequest]:
    """Prompts of different lengths with different seeds. The last prompt fills a block of the KV cache (128 tokens on a CPU)."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(3, vocab, size=8 + 5 * i if i < count - 1 else 140) for i in range(count)]
    return [SamplingRequest(prompt, i, 0, 1000 * seed + i) for i, prompt in enumerate(prompts)]


@torch.no_grad()
def mixture_rows(student: PreTrainedModel, teacher: PreTrainedModel | None, share: float, tokens: np.ndarray, **options) -> torch.Tensor:
    """The mixture's next-token log-probs, float64 [n, shared], computed from its definition."""
    shared, temperature = options.get("shared", 512), options.get("temperature", 1.0)
    ids = torch.from_numpy(tokens)[None]
    softmax = [
        (network(ids).logits[0, :, :shared].double() / temperature).softmax(-1) for network in (student, teacher) if network is not None
    ]
    return softmax[0].log() if teacher is None else ((1 - share) * softmax[0] + share * softmax[1]).log()


def worst_gap(rollouts: list[Rollout], student: PreTrainedModel, teacher: PreTrainedModel | None, share: float, **options) -> float:
    """The largest difference, in nats, between the rollouts' behavior log-probs and the mixture's."""
    gaps = []
    for rollout in rollouts:
        tokens = rollout.sequence.tokens
        rows = mixture_rows(student, teacher, share, tokens, **options)
        positions = np.arange(len(rollout.prompt_tokens), len(tokens))
        expected = rows[positions - 1, tokens[positions]]
        gaps.append((expected - torch.from_numpy(rollout.behavior_logprobs)).abs().max().item())
    return max(gaps)


def cached_tokens(worker: RolloutWorker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows as the worker's engine finishes requests: of each, the prompt's tokens that came from the prefix cache."""
    engine, counts = worker._engine.llm_engine, []
    step = engine.step

    def counting_step():
        outputs = step()
        counts.extend(output.num_cached_tokens for output in outputs if output.finished)
        return outputs

    monkeypatch.setattr(engine, "step", counting_step)
    return counts


def perturb(model: PreTrainedModel, seed: int) -> None:
    """Adds noise of about a third of each weight's spread. Log-probs change by far more than any tolerance here."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator) * parameter.data.std().clamp(min=0.05)


def named_weights(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """The weights as a learner sends them: by name, without a tied head."""
    return list(model.named_parameters())


def publish(worker: RolloutWorker, model: PreTrainedModel, version: int, bucket_bytes: int = 100_000) -> None:
    worker.begin_weights()
    for bucket in pack(named_weights(model), bucket_bytes):
        worker.load_bucket(bucket, checksum(bucket))
    worker.finish_weights(version)
