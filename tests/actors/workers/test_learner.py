"""The learner under real DeepSpeed: dividing, resuming or sharding a step changes neither gradient nor weights."""

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from minirl.config.objective import ObjectiveConfig
from minirl.errors import RunError
from minirl.model.loading import load_causal_lm
from minirl.model.output_head import read_head
from minirl.model.student import StudentModule
from minirl.objective.credit import whitening_statistics
from minirl.training.inputs import OnPolicyItem
from minirl.training.update import LossDivisors, UpdateStep, on_policy_loss, supervised_loss
from minirl.types import Rollout
from tests.actors.learners import VOCABULARY, blocks, learner_group, lengths_of, on_policy_items, teacher_scores, weights
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow

LEARNING_RATE = 1.0
TEACHER = {"hidden": 48, "seed": 2}
STUDENTS = {
    "llama, tied": ("llama", {"tied": True}),
    "llama, untied": ("llama", {"tied": False}),
    "gpt2": ("gpt2", {}),  # absolute positions
}
RESPONSE_LIMIT = 20


@pytest.fixture(scope="module")
def models(model_directory):
    return model_directory("llama", vocab=VOCABULARY, hidden=32, seed=1), model_directory("llama", vocab=VOCABULARY, **TEACHER)


@pytest.fixture(scope="module")
def items(models):
    """Twelve rollouts of different lengths and three blocks of plain text, all with the teacher's scores."""
    plain = blocks()
    scores = teacher_scores(models[1], [block.sequence for block in plain])
    return on_policy_items(models[1]), [dataclasses.replace(block, scores=s) for block, s in zip(plain, scores, strict=True)]


def response_tokens(items) -> int:
    return sum(len(item.rollout.response_tokens) for item in items)


def run_update(group, items, preset="paper"):
    """Weights before and after an update, and its sums. With frozen credit the group first computes the advantages."""
    before = weights(group)
    on_policy, supervised = items
    whitening = None
    if preset == "lmops":
        advantages = group.frozen_advantages(on_policy, lengths_of(on_policy))
        on_policy = [dataclasses.replace(item, advantages=a) for item, a in zip(on_policy, advantages, strict=True)]
        whitening = whitening_statistics(advantages, RESPONSE_LIMIT)
    else:
        supervised = [dataclasses.replace(item, scores=None) for item in supervised]
    scale = LossDivisors(response_tokens(on_policy), sum(item.sequence.targets for item in supervised), whitening)
    sums = group.update(UpdateStep(0, 0, LEARNING_RATE, scale), on_policy, supervised, lengths_of(on_policy))
    return before, weights(group), sums


def gradient(result) -> torch.Tensor:
    before, after, _ = result
    return torch.cat([(before[name] - after[name]).flatten().double() for name in sorted(before)]) / LEARNING_RATE


def assert_same_step(result, expected):
    reference = gradient(expected)
    assert reference.norm() > 0.1
    assert (gradient(result) - reference).norm() <= 1e-5 * reference.norm()
    assert set(result[2]) == set(expected[2])
    for name, value in expected[2].items():
        assert name == "busy_seconds" or result[2][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    before, after, sums = result
    moved = torch.cat([(before[name] - after[name]).flatten() for name in before])
    assert sums["grad_norm"] == pytest.approx(moved.norm().item() / LEARNING_RATE, rel=1e-4)


def updated_with(models, items, *, preset="paper", **learner):
    with learner_group(*models, preset=preset, **learner) as group:
        return run_update(group, items, preset)


@pytest.fixture(scope="module")
def reference(ray_cluster, models, items):
    return updated_with(models, items)


@pytest.mark.parametrize(
    ("workers", "stage", "tokens_per_microbatch"),
    [(2, 0, 4096), (1, 2, 64), (2, 2, 100), (4, 2, 4096), (2, 3, 64)],
)
def test_gradient_does_not_depend_on_the_division(reference, models, items, workers, stage, tokens_per_microbatch):
    assert_same_step(updated_with(models, items, workers=workers, zero_stage=stage, tokens_per_microbatch=tokens_per_microbatch), reference)


def test_packed_sequences_and_recomputed_chunks_give_the_same_step(reference, models, items):
    assert_same_step(updated_with(models, items, packing="on", tokens_per_microbatch=200, head_chunk_tokens=16), reference)


def test_benchmark_baselines_do_not_change_the_student(ray_cluster, models, items):
    def baselines(worker) -> tuple:
        learner, (on_policy, _) = worker.learner, items
        seconds = learner.baseline_seconds([on_policy[:4], on_policy[4:]]), learner.head_seconds(30)
        return *seconds, all(parameter.grad is None for parameter in learner.model.parameters())

    for stage in (0, 2, 3):
        with learner_group(*models, zero_stage=stage) as group:
            before = weights(group)
            plain, heads, no_gradients = group.get([group.workers[0].__ray_call__.remote(baselines)], "measure")[0]
            assert (plain is None, heads is None) == (stage == 3, stage == 3)
            assert stage == 3 or (plain > 0 and set(heads) == {"chunked", "products"} and min(heads.values()) > 0)
            assert no_gradients
            assert all(torch.equal(tensor, before[name]) for name, tensor in weights(group).items())


def test_frozen_credit_and_whitening_do_not_depend_on_the_division(ray_cluster, models, items):
    undivided = updated_with(models, items, preset="lmops")
    assert_same_step(updated_with(models, items, preset="lmops", workers=2, zero_stage=2, tokens_per_microbatch=70), undivided)


def plain_gradient(student: str, teacher: str, items) -> torch.Tensor:
    """The gradient from plain autograd: one process, no DeepSpeed, no checkpointing, one micro-batch of each kind."""
    model = load_causal_lm(student, torch.float32, dropout=False)
    module = StudentModule(model, vocabulary=VOCABULARY, chunk_tokens=4096, teacher_head=read_head(teacher, VOCABULARY))
    on_policy, supervised = items
    scale = LossDivisors(response_tokens(on_policy), sum(item.sequence.targets for item in supervised))
    loss, _ = on_policy_loss(module, on_policy, ObjectiveConfig(), scale, device="cpu", temperature=1.0, teacher_share=0.2)
    loss = loss + supervised_loss(module, [dataclasses.replace(item, scores=None) for item in supervised], scale, device="cpu")[0]
    loss.backward()
    named = dict(model.named_parameters())
    return torch.cat([named[name].grad.flatten().double() for name in sorted(named)])


def student_of(model_directory, kind: str) -> str:
    family, shape = STUDENTS[kind]
    return model_directory(family, vocab=VOCABULARY, hidden=32, seed=3, **shape)


@pytest.mark.parametrize(
    "switches",
    [{"gradient_checkpointing": True}, {"workers": 2, "zero_stage": 3, "tokens_per_microbatch": 100}],
    ids=["checkpointing", "ZeRO 3"],
)
def test_families_heads_and_checkpointing_equal_plain_autograd(switches, ray_cluster, models, items, model_directory):
    with learner_group(*models, **switches) as group:
        for kind in STUDENTS:
            student = student_of(model_directory, kind)
            group.load_model(student)
            expected = plain_gradient(student, models[1], items)
            assert (gradient(run_update(group, items)) - expected).norm() <= 1e-5 * expected.norm(), kind
        if switches.get("zero_stage") == 3:
            assert_nccl_would_send_what_is_packed(group)


def assert_nccl_would_send_what_is_packed(group):
    """On GPUs vLLM's sender iterates over these weights. Here every rank runs the sender's own check of order, names, dtypes and shapes."""

    def checked_by_sender(worker):
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine as Sender

        from actors.weights.nccl import LearnerWeights

        source = LearnerWeights(worker.learner, "bfloat16")
        return dict(Sender._checked_iter(source, source.metadata())), source.sent

    packed = {name: tensor for ref, *_ in group.pack_weights("bfloat16") for name, tensor in ray.get(ref).tensors()}
    for rank, (sent, samples) in enumerate(group.get([worker.__ray_call__.remote(checked_by_sender) for worker in group.workers], "send")):
        assert list(sent) == list(packed)
        assert all(torch.equal(sent[name], packed[name]) for name in packed)
        assert [sample.name for sample in samples] == (list(packed) if rank == 0 else [])
    info = group.weight_info("bfloat16")
    assert (info["names"], info["shapes"]) == (list(packed), [list(tensor.shape) for tensor in packed.values()])
    assert set(info["dtype_names"]) == {"bfloat16"}


@pytest.mark.parametrize(("workers", "stage"), [(1, 0), (2, 2)])
def test_bfloat16_trains_with_a_float32_optimizer(workers, stage, ray_cluster, models):
    plain = blocks()
    count = sum(item.sequence.targets for item in plain)

    def optimizer_dtypes(worker):
        optimizer = worker.learner.engine.optimizer
        inner = getattr(optimizer, "optimizer", optimizer)
        moments = [v for state in inner.state.values() for v in state.values() if torch.is_tensor(v) and v.ndim]
        masters = [p for group in inner.param_groups for p in group["params"]]
        return {str(t.dtype) for t in moments}, {str(p.dtype) for p in masters}, {str(p.dtype) for p in worker.learner.model.parameters()}

    with learner_group(models[0], dtype="bfloat16", optimizer="adamw", workers=workers, zero_stage=stage) as group:
        losses = []
        for update in range(10):
            step = UpdateStep(0, update, 1e-3, LossDivisors(supervised=count))
            losses.append(group.update(step, [], plain, [])["supervised"])
        assert all(after < before for before, after in itertools.pairwise(losses))
        assert losses[-1] < 0.8 * losses[0]
        for moments, masters, parameters in group.get([w.__ray_call__.remote(optimizer_dtypes) for w in group.workers], "inspect"):
            assert (moments, masters, parameters) == ({"torch.float32"}, {"torch.float32"}, {"torch.bfloat16"})


def test_an_optimizer_in_host_memory_learns_too(ray_cluster, models):
    """The first run on a machine compiles DeepSpeed's CPU optimizer."""
    plain = blocks()
    count = sum(item.sequence.targets for item in plain)
    with learner_group(models[0], dtype="bfloat16", optimizer="adamw", zero_stage=2, offload_optimizer=True) as group:
        steps = [UpdateStep(0, update, 1e-3, LossDivisors(supervised=count)) for update in range(5)]
        losses = [group.update(step, [], plain, [])["supervised"] for step in steps]
    assert all(after < before for before, after in itertools.pairwise(losses))


@pytest.mark.parametrize("stage", [0, 2])
def test_resumed_training_equals_uninterrupted_bit_for_bit(stage, ray_cluster, model_directory, tmp_path):
    """Dropout is on, so that random states matter too."""
    student, plain = student_of(model_directory, "gpt2"), blocks((30, 17, 9, 25))
    scale = LossDivisors(supervised=sum(item.sequence.targets for item in plain))
    switches = {"optimizer": "adamw", "workers": 2, "zero_stage": stage, "dropout": True, "deterministic": True}

    def updates(group, start: int, end: int) -> list[float]:
        return [group.update(UpdateStep(0, number, 1e-2, scale), [], plain, [])["supervised"] for number in range(start, end)]

    with learner_group(student, **switches) as group:
        updates(group, 0, 2)
        group.save(str(tmp_path))
        uninterrupted = updates(group, 2, 4), weights(group)
    with learner_group(student, **switches) as group:
        fresh = weights(group)
        group.load(str(tmp_path))
        resumed = updates(group, 2, 4), weights(group)
    assert resumed[0] == uninterrupted[0]
    assert all(torch.equal(resumed[1][name], uninterrupted[1][name]) for name in fresh)
    assert not any(torch.equal(resumed[1][name], fresh[name]) for name in fresh if name.endswith("weight"))


def permuted(source: str, directory: Path) -> str:
    """The teacher with the rows of its output head rolled by one."""
    shutil.copytree(source, directory)
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].roll(1, 0).contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return str(directory)


def test_refused_updates_leave_the_weights_unchanged(ray_cluster, model_directory, models, tmp_path):
    teacher = model_directory("llama", vocab=VOCABULARY, tied=False, **TEACHER)
    good = on_policy_items(teacher)
    norm = load_file(Path(teacher) / "model.safetensors")["model.norm.weight"].numpy()
    without_norm = [dataclasses.replace(i, scores=dataclasses.replace(i.scores, hidden=i.scores.hidden / norm)) for i in good]
    scale = LossDivisors(response_tokens(good), 1.0)

    with learner_group(models[0], teacher, optimizer="sgd") as group:
        before = weights(group)

        def refused(items, message: str, check_behavior: bool = False) -> None:
            with pytest.raises(RunError, match=message):
                group.update(UpdateStep(7, 21, 1e-3, scale, check_behavior, teacher_share=0.2), items, [], lengths_of(items))
            assert all(torch.equal(tensor, before[name]) for name, tensor in weights(group).items())

        refused(on_policy_items(permuted(teacher, tmp_path / "permuted")), "the teacher rebuilt from hidden states")
        refused(without_norm, "the teacher rebuilt from hidden states")
        with pytest.raises(RunError, match="the teacher rebuilt from hidden states"):
            group.frozen_advantages(without_norm, lengths_of(without_norm))
        refused([with_behavior(good[0], -1e4), *good[1:]], "loss of iteration 7, update 21, is not finite")
        refused(good, "iteration 7: the learner and the rollout engine differ", check_behavior=True)
        group.load_model(models[0])  # drops the gradients of the refused updates
        group.update(UpdateStep(7, 21, 1e-3, scale), good, [], lengths_of(good))
        assert not torch.equal(weights(group)["model.norm.weight"], before["model.norm.weight"])


def with_behavior(item: OnPolicyItem, first: float) -> OnPolicyItem:
    logprobs = item.rollout.behavior_logprobs.copy()
    logprobs[0] = first
    return dataclasses.replace(item, rollout=dataclasses.replace(item.rollout, behavior_logprobs=logprobs))


def test_memory_of_an_update_does_not_grow_with_tokens_times_vocabulary(ray_cluster, tmp_path):
    """The allocator's peak during an update in the learner's process, at 1,024 and at 4,096 target tokens, with 32,768 token ids."""
    vocabulary, few, many = 32_768, 8, 32
    student = tiny_model(tmp_path / "student", "llama", vocab=vocabulary, hidden=32, layers=1, seed=1, tokenizer_vocab=64)
    teacher = tiny_model(tmp_path / "teacher", "llama", vocab=vocabulary, hidden=32, layers=1, seed=2, tokenizer_vocab=64)
    draw = np.random.default_rng(0)
    rollouts = [
        Rollout(draw.integers(3, vocabulary, 4), draw.integers(3, vocabulary, 128), np.full(128, -9.0, np.float32), True, 1, i, 0)
        for i in range(many)
    ]
    items = on_policy_items(teacher, rollouts, vocabulary)

    def peak_bytes(worker, items) -> int:
        step = UpdateStep(0, 0, 1e-3, LossDivisors(response_tokens(items), 1.0))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            worker.update(step, [items], [])
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))

    with learner_group(student, teacher, vocabulary=vocabulary, head_chunk_tokens=256) as group:
        group.update(UpdateStep(0, 0, 1e-3, LossDivisors(128.0, 1.0)), items[:1], [], [132])  # allocates the optimizer's own memory first
        small, large = (group.get([group.workers[0].__ray_call__.remote(peak_bytes, items[:n])], "update")[0] for n in (few, many))
    chunk_logits = 256 * vocabulary * 4
    assert small > chunk_logits  # the profiler saw the head
    more_logits = (many - few) * 128 * vocabulary * 4  # 400 MB
    assert large - small < 0.1 * more_logits
