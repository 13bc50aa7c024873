"""Scores out of sampling: those that a rollout engine returns with its rollouts are the teacher group's."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from actors.config import RolloutConfig, ScoreCapture, TeacherConfig
from actors.engine import engine as engine_module
from actors.workers.rollout import RolloutWorker
from actors.workers.teacher import TeacherWorker
from minirl.errors import RunError
from minirl.training.inputs import OnPolicyItem
from minirl.types import SamplingRequest, TeacherScores, tensor_from_numpy
from tests.actors.conftest import MAX_LENGTH, cached_tokens
from tests.tiny import END_TOKEN

pytestmark = pytest.mark.slow

TEACHER = {"hidden": 128, "layers": 3, "heads": 4, "tied": False, "seed": 1}
RESPONSE, CHECK_EVERY, TEMPERATURE, VOCABULARY = 60, 8, 0.8, 500
ENGINE = {"device": "cpu", "threads": 1, "max_model_len": MAX_LENGTH, "shared_vocabulary": VOCABULARY, "temperature": TEMPERATURE}
TOLERANCE = {"float32": (2e-5, 2e-5), "bfloat16": (0.1, 0.05)}  # of the states, and of log-normalisers and log-probs in nats

CASES = {  # the rollout engine's settings: those of RolloutConfig, and vLLM's own
    "plain": ({}, {"async_scheduling": False}),
    "a step under way when a request ends": ({}, {"async_scheduling": True}),
    "prompts in parts": ({}, {"enable_chunked_prefill": True, "max_num_batched_tokens": 64}),
    "preemptions": ({"kv_cache_gib": 0.0015}, {}),
    "bfloat16": ({"dtype": "bfloat16"}, {}),
    "tensor parallel": ({"tensor_parallel": 2}, {}),
}


def requests(seeded: bool) -> list[SamplingRequest]:
    """Four samples of each of four prompts. The second and later samples find the first 128 tokens of their prompt in the prefix cache."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(3, VOCABULARY, size) for size in (140, 150, 100, 9)]
    return [SamplingRequest(prompt, i, j, 10 * i + j if seeded else None) for i, prompt in enumerate(prompts) for j in range(4)]


@contextmanager
def open_engine(paths: list[str], config: dict, vllm: dict, monkeypatch) -> Iterator[RolloutWorker]:
    arguments_of = engine_module._device_arguments
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "_device_arguments", lambda *given: arguments_of(*given) | {"disable_log_stats": False} | vllm)
        worker = RolloutWorker(
            *paths,
            RolloutConfig(**({"dtype": "float32", "kv_cache_gib": 0.125} | config)),
            **ENGINE,
            end_tokens=(END_TOKEN, *range(40, 46)),
            capture=ScoreCapture(requests=16, response_tokens=RESPONSE, check_every=CHECK_EVERY),
        )
    try:
        yield worker
    finally:
        if "tensor_parallel" in config:  # an engine inside this process cannot be stopped without the others
            worker.close()


@pytest.fixture(scope="module")
def paths(model_directory) -> list[str]:
    return [model_directory("llama", vocab=512, tokenizer_vocab=VOCABULARY), model_directory("llama", **TEACHER)]


@pytest.fixture(scope="module")
def score_by_group(paths):
    """The scores of the teacher group's worker, one for each dtype; a fresh one beside tensor-parallel processes, which end older ones."""
    workers = {}

    def score(dtype: str, tensor_parallel: int, items: list[OnPolicyItem]) -> list[TeacherScores]:
        key = (dtype, tensor_parallel)
        if key not in workers:
            config = TeacherConfig(model=paths[1], dtype=dtype, kv_cache_gib=0.125, check_every=CHECK_EVERY)
            workers[key] = TeacherWorker(paths[1], config, **ENGINE)
        return workers[key].score([item.sequence for item in items])

    return score


def sample(worker: RolloutWorker, share: float, seeded: bool = True, **options) -> list[OnPolicyItem]:
    return worker.sample(requests(seeded), teacher_share=share, max_response_tokens=RESPONSE, weight_version=None, **options)


def gap(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    return max(float((tensor_from_numpy(a).float() - tensor_from_numpy(b).float()).abs().max()) for a, b in pairs if len(a))


def assert_scores_are_the_groups(items: list[OnPolicyItem], expected: list[TeacherScores], dtype: str) -> None:
    pairs = [(item.scores, scores) for item, scores in zip(items, expected, strict=True)]
    states, columns = TOLERANCE[dtype]
    for ours, group in pairs:
        assert ours.hidden.dtype == group.hidden.dtype and ours.hidden.shape == group.hidden.shape
        for name in ("logprobs", "log_normalizers"):
            assert getattr(ours, name).dtype == getattr(group, name).dtype
            checked = np.arange(len(ours.hidden)) % CHECK_EVERY == 0
            assert (np.isfinite(getattr(ours, name)) == checked).all() and (np.isfinite(getattr(group, name)) == checked).all()
    assert gap([(ours.hidden, group.hidden) for ours, group in pairs]) < states
    every = slice(None, None, CHECK_EVERY)
    for name in ("logprobs", "log_normalizers"):
        assert gap([(getattr(ours, name)[every], getattr(group, name)[every]) for ours, group in pairs]) < columns
    assert gap([(ours.hidden[1:], group.hidden[:-1]) for ours, group in pairs]) > 10 * states, "states one token off would pass"


@pytest.mark.parametrize("case", CASES)
def test_scores_out_of_sampling_are_those_of_the_teacher_group(case, paths, score_by_group, monkeypatch):
    config, vllm = CASES[case]
    dtype, chunked = config.get("dtype", "float32"), "enable_chunked_prefill" in vllm
    with open_engine(paths, config, vllm, monkeypatch) as worker:
        cached = cached_tokens(worker, monkeypatch)
        # Share 0: the teacher runs for the scores alone. The third call finds no state of the others.
        items_by_share = {share: sample(worker, share, seeded=not chunked, with_scores=True) for share in (0.2, 0.0, 0.3)}
        preemptions = sum(metric.value for metric in worker._engine.get_metrics() if metric.name == "vllm:num_preemptions")
        for items in items_by_share.values():
            assert_scores_are_the_groups(items, score_by_group(dtype, config.get("tensor_parallel", 1), items), dtype)
            lengths = {len(item.rollout.response_tokens) for item in items}
            assert RESPONSE in lengths and len(lengths) > 2, "some responses end by a token, some by the limit"
    assert (preemptions > 0) == (case == "preemptions")
    assert max(cached) == 128 or case == "preemptions"


def test_scores_change_no_sample_and_need_room(paths, monkeypatch):
    with open_engine(paths, {}, {}, monkeypatch) as worker:
        for share in (0.2, 0.0):
            scored, plain = (sample(worker, share, with_scores=with_scores) for with_scores in (True, False))
            for item, rollout in zip(scored, plain, strict=True):
                assert item.rollout.response_tokens.tolist() == rollout.response_tokens.tolist()
                np.testing.assert_array_equal(item.rollout.behavior_logprobs, rollout.behavior_logprobs)
        with pytest.raises(RunError, match="scores of responses of 61 tokens were requested, but this engine has room for 60"):
            worker.sample(requests(True), teacher_share=0.2, max_response_tokens=61, weight_version=None, with_scores=True)


def test_the_room_for_scores_is_allocated_with_the_model(paths, monkeypatch):
    """So vLLM counts it before it divides the rest of a GPU's memory among the KV cache."""
    allocated, empty = [], torch.empty

    def recording(*arguments, **named):
        allocated.append(arguments)
        return empty(*arguments, **named)

    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    load = CPUModelRunner.load_model

    def recording_load(*arguments, **named):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", recording)
            return load(*arguments, **named)

    monkeypatch.setattr(CPUModelRunner, "load_model", recording_load)
    with open_engine(paths, {}, {}, monkeypatch):
        assert (16 * RESPONSE, TEACHER["hidden"]) in allocated
