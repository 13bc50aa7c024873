"""Samples and log-probs of a rollout worker, compared with Hugging Face."""

import copy

import numpy as np
import pytest
import torch

from actors.workers.rollout import SamplingRequest
from minirl.errors import InputError, RunError
from tests.actors.conftest import cached_tokens, hugging_face, mixture_rows, perturb, publish, requests, rollout_worker, worst_gap
from tests.families.models import family_model
from tests.tiny import END_TOKEN

pytestmark = pytest.mark.slow

WIDE = {"hidden": 96, "layers": 3, "heads": 3, "seed": 1}
PAIRS = {
    "llama": (("llama", {}), ("llama", WIDE)),
    "gpt2": (("gpt2", {}), ("gpt2", WIDE)),
    "qwen2": (("qwen2", {"tied": False}), ("qwen2", WIDE)),
    "gpt2 with a llama teacher of another head size": (
        ("gpt2", {"layers": 3}),
        ("llama", {**WIDE, "hidden": 128, "heads": 2, "tied": False}),
    ),
}


def sample(worker, share, version=None, tokens=40, sampling_requests=None):
    return worker.sample(sampling_requests or requests(), teacher_share=share, max_response_tokens=tokens, weight_version=version)


@pytest.mark.parametrize("pair", PAIRS)
def test_mixture_equals_hugging_face_as_loaded_and_after_each_publish(pair, model_directory, open_worker):
    paths = [model_directory(family, **shape) for family, shape in PAIRS[pair]]
    worker, (student, teacher) = open_worker(*paths), map(hugging_face, paths)
    # Share 0 comes first: it leaves the teacher's part of the KV cache unwritten. A prompt left in the prefix cache would then be wrong.
    for share in (0.0, 0.2, 1.0, 0.2):
        assert worst_gap(sample(worker, share), student, teacher, share) < 1e-5
    for version in (1, 2):
        before = copy.deepcopy(student)
        perturb(student, version)
        publish(worker, student, version)
        rollouts = sample(worker, 0.2, version)
        assert worst_gap(rollouts, student, teacher, 0.2) < 1e-5
        assert worst_gap(rollouts, before, teacher, 0.2) > 1e-2  # the weights as loaded would not have passed
        assert worst_gap(sample(worker, 0.0, version), student, None, 0.0) < 1e-5
        assert {rollout.weight_version for rollout in rollouts} == {version}


def test_an_engine_of_an_earlier_stage_samples_its_student_only_after_a_publish(model_directory, open_worker):
    paths = [model_directory(family, **shape) for family, shape in PAIRS["llama"]]
    worker, (student, teacher) = open_worker(*paths), map(hugging_face, paths)
    publish(worker, student, version=1)
    worker.forget_weights()
    with pytest.raises(RunError, match="the engine still holds the student of an earlier stage; publish weights"):
        sample(worker, 0.2, version=0)
    with pytest.raises(RunError, match="version 1, but version 0 is loaded"):
        sample(worker, 0.2, version=1)
    assert worst_gap(sample(worker, 1.0, version=0), student, teacher, 1.0) < 1e-5
    publish(worker, student, version=1)
    assert worst_gap(sample(worker, 0.2, version=1), student, teacher, 0.2) < 1e-5


@pytest.mark.parametrize("families", [("llama", "phi3"), ("phi3", "llama")], ids=["a window in the teacher", "a window in the student"])
def test_each_network_of_a_mixture_keeps_its_own_sliding_window(families, tmp_path, open_worker):
    """Phi-3 attends to the last 32 tokens here, Llama to all. The longest sequence has 180."""
    paths = [family_model(tmp_path / role, family) for role, family in zip(("student", "teacher"), families, strict=True)]
    worker, (student, teacher) = open_worker(*paths), map(hugging_face, paths)
    assert worst_gap(sample(worker, 0.5), student, teacher, 0.5) < 1e-5


@pytest.mark.parametrize("vocabularies", [(576, 512), (512, 640)], ids=["wider student", "wider teacher"])
def test_padded_vocabulary_and_temperature(vocabularies, model_directory, open_worker):
    paths = [model_directory("llama", vocab=v, tokenizer_vocab=500, seed=v) for v in vocabularies]
    worker = open_worker(*paths, shared_vocabulary=500, temperature=0.7)
    student, teacher = map(hugging_face, paths)
    for share in (0.0, 0.3, 1.0):
        rollouts = sample(worker, share, tokens=60)
        # The expected distributions are normalised over the shared ids alone, so the other ids have probability 0.
        assert worst_gap(rollouts, student, teacher, share, shared=500, temperature=0.7) < 1e-5
        assert max(rollout.response_tokens.max() for rollout in rollouts) < 500


def test_samples_follow_the_mixture(model_directory, open_worker):
    """Chi-square over a vocabulary of 12. As a contrast, the same samples reject the student's own distribution."""
    paths = [model_directory("llama", vocab=12, seed=seed) for seed in (3, 4)]
    worker, (student, teacher) = open_worker(*paths, shared_vocabulary=12), map(hugging_face, paths)
    prompt = np.array([5, 9, 4, 7, 3])
    sampling_requests = [SamplingRequest(prompt, 0, i, 7_919 * i) for i in range(4000)]
    counts = np.bincount([r.response_tokens[0] for r in sample(worker, 0.5, tokens=1, sampling_requests=sampling_requests)], minlength=12)
    p_value = {}
    for share in (0.0, 0.5):
        p_value[share] = chi_square_p(counts, mixture_rows(student, teacher, share, prompt, shared=12)[-1].exp().numpy())
    assert counts.min() > 5
    assert p_value[0.5] > 0.01
    assert p_value[0.0] < 1e-6


def chi_square_p(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2), torch.tensor(statistic / 2)).item()


@pytest.fixture(scope="module")
def plain(model_directory, open_worker):
    """A worker on the student's own class, with three end tokens."""
    path = model_directory("llama", tied=False, seed=5)
    return open_worker(path, end_tokens=(END_TOKEN, 40, 41)), hugging_face(path)


def test_plain_student_needs_no_mixture_model(plain, model_directory):
    worker, student = plain
    names = worker._engine.apply_model(lambda model: type(model).__name__)
    assert names == ["LlamaForCausalLM"]
    assert worst_gap(sample(worker, 0.0), student, None, 0.0) < 1e-5


def many_requests() -> list[SamplingRequest]:
    """Six samples of each of twelve prompts, of 64 tokens at most."""
    prompts = [request.prompt_tokens[:60] for request in requests(12, seed=2)]
    return [SamplingRequest(prompt, i, j, 100 * i + j) for i, prompt in enumerate(prompts) for j in range(6)]


def test_each_end_token_ends_a_response_and_counts_once(plain):
    worker, student = plain
    rollouts = sample(worker, 0.0, tokens=64, sampling_requests=many_requests())
    ends = {END_TOKEN, 40, 41}
    for rollout in rollouts:
        assert not ends & set(rollout.response_tokens[:-1].tolist())
        assert rollout.truncated == (rollout.response_tokens[-1] not in ends)
        assert not rollout.truncated or len(rollout.response_tokens) == 64
    assert {int(r.response_tokens[-1]) for r in rollouts if not r.truncated} == ends
    assert worst_gap(rollouts, student, None, 0.0) < 1e-5


def test_with_ignore_end_tokens_no_token_ends_a_response(plain):
    worker, _ = plain
    sampling_requests, options = many_requests(), {"teacher_share": 0.0, "max_response_tokens": 64, "weight_version": None}
    ended = [len(rollout.response_tokens) for rollout in worker.sample(sampling_requests, **options)]
    assert min(ended) < 64
    assert {len(rollout.response_tokens) for rollout in worker.sample(sampling_requests, **options, ignore_end_tokens=True)} == {64}


def test_end_token_at_the_limit_is_finished_not_truncated(plain):
    worker, _ = plain
    sampling_requests = many_requests()
    finished = [
        (r, o)
        for r, o in zip(sampling_requests, sample(worker, 0.0, tokens=64, sampling_requests=sampling_requests), strict=True)
        if not o.truncated
    ]
    request, complete = min(finished, key=lambda pair: len(pair[1].response_tokens))
    limit = len(complete.response_tokens)
    (again,) = sample(worker, 0.0, tokens=limit, sampling_requests=[request])
    assert (again.truncated, again.response_tokens.tolist()) == (False, complete.response_tokens.tolist())
    if limit > 1:
        (cut,) = sample(worker, 0.0, tokens=limit - 1, sampling_requests=[request])
        assert cut.truncated and cut.response_tokens.tolist() == complete.response_tokens[:-1].tolist()


def test_samples_of_one_prompt_share_its_cached_beginning(plain, monkeypatch):
    """vLLM caches whole blocks, of 128 tokens on a CPU. Three of the four samples find the first block of the prompt in the cache."""
    worker, student = plain
    prompt = np.random.default_rng(9).integers(3, 512, 140)
    sampling_requests = [SamplingRequest(prompt, 0, sample_index, 70 + sample_index) for sample_index in range(4)]
    cached = cached_tokens(worker, monkeypatch)
    rollouts = sample(worker, 0.0, tokens=20, sampling_requests=sampling_requests)
    assert sorted(cached) == [0, 128, 128, 128]
    assert len({tuple(r.response_tokens) for r in rollouts}) == 4
    assert worst_gap(rollouts, student, None, 0.0) < 1e-5


def test_batch_composition_and_order_do_not_change_the_tokens(plain):
    worker, _ = plain
    sampling_requests = requests(8, seed=4)
    together = [r.response_tokens.tolist() for r in sample(worker, 0.0, sampling_requests=sampling_requests)]
    backwards = [r.response_tokens.tolist() for r in sample(worker, 0.0, sampling_requests=sampling_requests[::-1])][::-1]
    alone = [r.response_tokens.tolist() for request in sampling_requests for r in sample(worker, 0.0, sampling_requests=[request])]
    assert together == backwards == alone
    other = [SamplingRequest(r.prompt_tokens, r.prompt_index, 1, r.seed + 1) for r in sampling_requests]
    assert together != [r.response_tokens.tolist() for r in sample(worker, 0.0, sampling_requests=other)]


class OneAtATime:
    """Queued requests of which each `take` gives one. Records what was under way."""

    def __init__(self, pairs):
        self.pairs, self.under_way = list(pairs), []

    @property
    def are_left(self):
        return bool(self.pairs)

    def take(self, under_way):
        self.under_way.append(under_way)
        return [self.pairs.pop(0)] if self.pairs else []


def test_requests_that_are_taken_later_join_the_running_batch_and_change_no_tokens(plain):
    worker, student = plain
    sampling_requests = requests(8, seed=6)
    pairs = list(enumerate(sampling_requests))
    together, queued = sample(worker, 0.0, sampling_requests=sampling_requests), OneAtATime(pairs[3:])
    options = {"teacher_share": 0.0, "max_response_tokens": 40, "weight_version": None}
    joined = dict(pair for pairs in worker.sample_each(pairs[:3], queued, **options) for pair in pairs)
    assert [joined[i].response_tokens.tolist() for i in range(8)] == [rollout.response_tokens.tolist() for rollout in together]
    assert min(len(rollout.response_tokens) for rollout in together) > 8
    assert queued.under_way[:5] == [3, 4, 5, 6, 7], "one request more at every step, while none has finished"
    assert worst_gap(list(joined.values()), student, None, 0.0) < 1e-5


def test_an_engine_without_room_takes_no_more(plain, monkeypatch):
    """A batch of two: the engine takes a third request when one waits no longer, and a fourth when that one runs."""
    worker, _ = plain
    monkeypatch.setattr(worker._engine.llm_engine.engine_core.engine_core.scheduler, "max_num_active_reqs", 2)
    (first, *others), options = list(enumerate(requests(6, seed=6))), {"teacher_share": 0.0, "max_response_tokens": 20}
    queued = OneAtATime(others)
    sampled = worker.sample_each([first], queued, weight_version=None, ignore_end_tokens=True, **options)
    assert sorted(position for pairs in sampled for position, _ in pairs) == list(range(6))
    assert max(queued.under_way) == 2


def test_prompts_of_more_tokens_than_a_pass_takes_are_sampled_as_if_alone(plain):
    """A prompt that does not fit a pass waits for the next one: it is never cut, which a CPU's seeded generators could not handle."""
    worker, student = plain
    pass_tokens = worker._engine.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    prompts = np.random.default_rng(11).integers(3, 512, (pass_tokens // 50, 113))
    sampling_requests = [SamplingRequest(prompt, i, 0, 50 + i) for i, prompt in enumerate(prompts)]
    rollouts = sample(worker, 0.0, tokens=3, sampling_requests=sampling_requests)
    for request, rollout in list(zip(sampling_requests, rollouts, strict=True))[:: len(sampling_requests) // 5]:
        (alone,) = sample(worker, 0.0, tokens=3, sampling_requests=[request])
        assert alone.response_tokens.tolist() == rollout.response_tokens.tolist()
    assert worst_gap(rollouts[::20], student, None, 0.0) < 1e-5


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_greedy_answers_take_the_most_likely_token_of_the_mixture(share, model_directory, open_worker):
    """The same prompts twice, with other seeds: the answers do not depend on them, and the log-probs stay those of the distribution."""
    paths = [model_directory(family, **shape) for family, shape in PAIRS["llama"]]
    worker, (student, teacher) = open_worker(*paths), map(hugging_face, paths)
    options = {"teacher_share": share, "max_response_tokens": 20, "weight_version": None, "greedy": True}
    rollouts = worker.sample(requests(4), **options)
    again = worker.sample([SamplingRequest(r.prompt_tokens, r.prompt_index, 0, r.seed + 1) for r in requests(4)], **options)
    assert [r.response_tokens.tolist() for r in rollouts] == [r.response_tokens.tolist() for r in again]
    assert worst_gap(rollouts, student, teacher, share) < 1e-5
    for rollout in rollouts:
        tokens = rollout.sequence.tokens
        rows = mixture_rows(student, teacher, share, tokens)[len(rollout.prompt_tokens) - 1 : -1]
        likeliest = rows.gather(1, torch.from_numpy(rollout.response_tokens)[:, None])[:, 0]
        assert (rows.max(1).values - likeliest).max() < 1e-4


def test_identical_calls_are_bit_identical(plain):
    worker, _ = plain
    first, second = (np.concatenate([r.behavior_logprobs for r in sample(worker, 0.0)]) for _ in range(2))
    assert np.array_equal(first, second)


def test_invalid_sampling_calls_are_refused(plain):
    worker, _ = plain
    with pytest.raises(RunError, match="holds no teacher"):
        sample(worker, 0.2)
    with pytest.raises(RunError, match="exceed the engine's"):
        sample(worker, 0.0, tokens=200)
    with pytest.raises(RunError, match="version 3, but version 0"):
        sample(worker, 0.0, version=3)


def test_a_model_with_too_few_positions_is_refused_before_the_engine_starts(model_directory):
    short = model_directory("gpt2", max_positions=64)
    with pytest.raises(InputError, match="at most 64 tokens"):
        rollout_worker(model_directory("llama"), short)


def test_tensor_parallel_mixture_equals_hugging_face(model_directory):
    paths = [model_directory(family, **shape) for family, shape in PAIRS["llama"]]
    paths[1] = model_directory("llama", seed=1, layers=3)
    worker, (student, teacher) = rollout_worker(*paths, tensor_parallel=2), map(hugging_face, paths)
    try:
        assert worst_gap(sample(worker, 0.2), student, teacher, 0.2) < 1e-5
        perturb(student, 1)
        publish(worker, student, 1)
        for share in (0.2, 0.0):
            assert worst_gap(sample(worker, share, 1), student, teacher, share) < 1e-5
    finally:
        worker.close()


def test_blocked_ngrams_never_repeat_and_log_probs_are_renormalised(model_directory, open_worker):
    """A vocabulary of twelve, bigrams: without blocking nearly every response would repeat one."""
    path = model_directory("llama", vocab=12)
    worker, model = open_worker(path, shared_vocabulary=12, no_repeat_ngram=2), hugging_face(path)
    draw, blocked_count = np.random.default_rng(0), 0
    sampling_requests = [SamplingRequest(draw.integers(3, 12, size=6), i, 0, i) for i in range(8)]
    for rollout in sample(worker, 0.0, tokens=24, sampling_requests=sampling_requests):
        tokens = rollout.sequence.tokens
        rows = mixture_rows(model, None, 0.0, tokens, shared=12)
        for position in range(len(rollout.prompt_tokens), len(tokens)):
            seen = {tokens[i + 1] for i in range(position - 1) if tokens[i] == tokens[position - 1]}
            assert tokens[position] not in seen
            allowed = rows[position - 1].index_fill(0, torch.tensor(sorted(seen), dtype=torch.int64), float("-inf")).log_softmax(-1)
            behavior = rollout.behavior_logprobs[position - len(rollout.prompt_tokens)]
            assert float(allowed[tokens[position]]) == pytest.approx(behavior, abs=1e-5)
            blocked_count += len(seen)
    assert blocked_count > 100
