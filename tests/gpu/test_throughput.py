"""Throughput of each role on a GPU against bare PyTorch with the same model; each test prints its line.

The bounds are far below what a GPU reaches. They catch a role that computes on the CPU, in the wrong dtype, or without batches.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from actors.config import RolloutConfig, TeacherConfig
from actors.groups.rollout_group import RolloutGroup
from actors.groups.teacher_group import TeacherGroup
from actors.object_batches import fetch
from minirl.bench.model_flops import read_size, sampling_flops, scoring_flops, update_flops
from minirl.bench.timing import median_seconds
from minirl.training.inputs import OnPolicyItem
from minirl.training.update import LossDivisors, UpdateStep
from minirl.types import Rollout, SamplingRequest
from tests import bare_pytorch
from tests.actors.groups.test_iteration import started
from tests.actors.learners import CLUSTER, learner_group, lengths_of
from tests.tiny import END_TOKEN, tiny_model

pytestmark = pytest.mark.slow

DEVICE, DTYPE = "cuda", "bfloat16"
VOCABULARY, WIDTH, LAYERS, HEADS = 16384, 1024, 12, 16  # 200M parameters
SEQUENCES, PROMPT, RESPONSE = 256, 64, 192
MICRO_BATCH = 16384  # tokens of one pass
MEMORY = 0.5  # of the GPU, for an engine
ENGINE = {"max_model_len": PROMPT + RESPONSE, "shared_vocabulary": VOCABULARY, "temperature": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("model")
    return tiny_model(directory, vocab=VOCABULARY, hidden=WIDTH, layers=LAYERS, heads=HEADS)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(3, VOCABULARY, (SEQUENCES, PROMPT + RESPONSE))


@pytest.fixture(scope="module")
def rollouts(tokens) -> list[Rollout]:
    behavior = np.full(RESPONSE, -5.0, np.float32)
    return [Rollout(row[:PROMPT], row[PROMPT:], behavior, True, 1, index, 0) for index, row in enumerate(tokens)]


@dataclass(frozen=True)
class Throughput:
    """What a role did in `seconds`, and the FLOP/s of matrix products on its device."""

    tokens: int
    flops: float
    seconds: float
    matmul_rate: float

    def report(self, role: str, bare_seconds: float, capsys) -> float:
        """Prints one line. Returns the throughput over that of bare PyTorch, which takes `bare_seconds`."""
        rate, ratio, mfu = self.tokens / self.seconds, bare_seconds / self.seconds, self.flops / self.seconds / self.matmul_rate
        with capsys.disabled():
            print(f"\n{role}: {rate:,.0f} tokens/s, {ratio:.2f} of bare PyTorch's; MFU {mfu:.3f} of {self.matmul_rate / 1e12:.3g} TFLOP/s")
        return ratio


def measure(group, call, tokens: int, flops: float) -> Throughput:
    seconds = median_seconds(call, torch.device("cpu"))  # the call itself waits for the device
    return Throughput(tokens, flops, seconds, *group.call("matmul_rate", DTYPE, DEVICE))


def bare_seconds(model: str, call, *arguments) -> float:
    return bare_pytorch.seconds(bare_pytorch.load(model, getattr(torch, DTYPE), DEVICE), call, *arguments)


@pytest.fixture(scope="module")
def scored(ray_cluster, model, rollouts) -> tuple[Throughput, list[OnPolicyItem]]:
    """The teacher's throughput, and the rollouts with its scores."""
    config = TeacherConfig(model=model, dtype=DTYPE, gpu_memory_utilization=MEMORY, micro_batch_tokens=MICRO_BATCH)
    sequences = [rollout.sequence for rollout in rollouts]
    lengths = [PROMPT + RESPONSE] * SEQUENCES
    flops = scoring_flops(read_size(model), [(length, RESPONSE) for length in lengths], config.check_every)
    with started(TeacherGroup(config, CLUSTER, DEVICE, model=model, **ENGINE)) as group:
        throughput = measure(group, lambda: group.score(sequences, lengths), sum(lengths), flops)
        scores = [item.scores for item in fetch(group.score(sequences, lengths), CLUSTER.step_timeout_s)]
    return throughput, [OnPolicyItem(rollout, score) for rollout, score in zip(rollouts, scores, strict=True)]


def test_sampling_is_faster_than_generate(ray_cluster, model, tokens, capsys):
    config = RolloutConfig(dtype=DTYPE, gpu_memory_utilization=MEMORY)
    requests = [SamplingRequest(row[:PROMPT], index, 0, index) for index, row in enumerate(tokens)]
    options = {"teacher_share": 0.0, "max_response_tokens": RESPONSE, "weight_version": None, "ignore_end_tokens": True}
    flops = sampling_flops([read_size(model)], [(index, PROMPT, RESPONSE) for index in range(SEQUENCES)])
    with started(RolloutGroup(config, CLUSTER, DEVICE, model=model, teacher=None, end_tokens=(END_TOKEN,), **ENGINE)) as group:
        throughput = measure(group, lambda: group.sample(requests, **options), SEQUENCES * RESPONSE, flops)
    assert throughput.report("rollout", bare_seconds(model, bare_pytorch.sample, tokens[:, :PROMPT], RESPONSE), capsys) > 1


def test_scoring_keeps_up_with_a_forward_pass(scored, model, tokens, capsys):
    bare = bare_seconds(model, bare_pytorch.states, tokens, MICRO_BATCH // (PROMPT + RESPONSE))
    assert scored[0].report("teacher", bare, capsys) > 0.1


def test_an_update_keeps_up_with_bare_passes(scored, model, capsys):
    """The teacher has the student's weights. A learning rate of 0 keeps the student as it is."""
    items, size = scored[1], read_size(model)
    step, lengths = UpdateStep(0, 0, 0.0, LossDivisors(SEQUENCES * RESPONSE)), lengths_of(scored[1])
    flops = update_flops(size, size.head, [(length, RESPONSE) for length in lengths], frozen=False)
    settings = {
        "vocabulary": VOCABULARY,
        "dtype": DTYPE,
        "device": DEVICE,
        "tokens_per_microbatch": MICRO_BATCH,
        "checksum_tolerance": 0.03,
    }
    with learner_group(model, model, optimizer="adamw", **settings) as group:
        throughput = measure(group, lambda: group.update(step, items, [], lengths), sum(lengths), flops)
        (bare,) = group.baseline_seconds(items, lengths)
    assert throughput.report("learner", bare, capsys) > 0.3
