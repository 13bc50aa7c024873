"""Weights for the engines: packing, checksums, loading into a rollout worker, and the errors it raises."""

import dataclasses

import numpy as np
import pytest
import torch

from actors.weights.packed import PackedWeights, checksum, pack
from minirl.errors import RunError
from tests.actors.conftest import hugging_face, named_weights, perturb, publish, requests, worst_gap


def tensors() -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(0)
    half = torch.randn(40, 3).bfloat16()
    return [("a", torch.randn(5, 7)), ("b", half.T), ("c", torch.tensor(2.5)), ("d", torch.randn(1000))]


@pytest.mark.parametrize("bucket_bytes", [1, 500, 10**6])
def test_pack_keeps_names_order_and_bits(bucket_bytes):
    buckets = list(pack(iter(tensors()), bucket_bytes))
    unpacked = [pair for bucket in buckets for pair in bucket.tensors()]
    assert [name for name, _ in unpacked] == list("abcd")
    for (_, sent), (_, received) in zip(tensors(), unpacked, strict=True):
        assert sent.dtype == received.dtype
        assert torch.equal(sent, received)
    assert all(bucket.nbytes <= bucket_bytes or len(bucket.specs) == 1 for bucket in buckets)


def test_tied_tensors_share_one_array_and_are_not_copied():
    tied = torch.randn(64, 8)
    (bucket,) = pack([("head", tied), ("embedding", tied), ("other", tied.clone())], 4 * 1024)
    assert bucket.arrays[0] is bucket.arrays[1] and bucket.nbytes == 2 * tied.numel() * 4
    assert bucket.arrays[0].ctypes.data == tied.data_ptr()
    assert all(torch.equal(tensor, tied) for _, tensor in bucket.tensors())


def test_tensors_are_views_of_read_only_memory():
    (bucket,) = pack(tensors(), 10**6)
    for array in bucket.arrays:
        array.flags.writeable = False
    assert [tensor.data_ptr() for _, tensor in bucket.tensors()] == [array.ctypes.data for array in bucket.arrays]


def test_checksum_sees_values_names_and_shapes():
    (bucket,) = pack(tensors(), 10**6)
    original = checksum(bucket)
    name, dtype, shape = bucket.specs[0]
    for spec in [("z", dtype, shape), (name, "int32", shape), (name, dtype, (7, 5))]:
        assert checksum(PackedWeights((spec, *bucket.specs[1:]), bucket.arrays)) != original
    for index in range(len(bucket.specs)):
        arrays = [array.copy() for array in bucket.arrays]
        arrays[index][-1] ^= 1
        assert checksum(PackedWeights(bucket.specs, tuple(arrays))) != original


@pytest.fixture(scope="module")
def untied(model_directory, open_worker):
    path = model_directory("llama", tied=False, seed=11)
    return open_worker(path), path


def sample(worker, version, share=0.0):
    return worker.sample(requests(4), teacher_share=share, max_response_tokens=30, weight_version=version)


@pytest.mark.slow
@pytest.mark.parametrize("bucket_bytes", [1, 60_000, 10**9], ids=["a bucket for each tensor", "several", "one bucket"])
def test_untied_head_after_publish(untied, bucket_bytes):
    worker, path = untied
    student = hugging_face(path)
    perturb(student, bucket_bytes % 97)
    publish(worker, student, 5, bucket_bytes)
    assert worst_gap(sample(worker, 5), student, None, 0.0) < 1e-5


@pytest.mark.slow
def test_bfloat16_stream_is_widened_exactly(untied):
    worker, path = untied
    student = hugging_face(path)
    for parameter in student.parameters():
        parameter.data = parameter.data.bfloat16().float()
    worker.begin_weights()
    for bucket in pack(((name, weight.bfloat16()) for name, weight in named_weights(student)), 60_000):
        worker.load_bucket(bucket, checksum(bucket))
    worker.finish_weights(6)
    assert worst_gap(sample(worker, 6), student, None, 0.0) < 1e-5


@pytest.mark.slow
def test_a_half_loaded_or_another_version_never_samples(untied):
    worker, path = untied
    student = hugging_face(path)
    publish(worker, student, 7)
    with pytest.raises(RunError, match="version 8, but version 7"):
        sample(worker, 8)
    with pytest.raises(RunError, match="weights on disk, but version 7"):
        sample(worker, None)
    worker.begin_weights()
    first, *rest = pack(named_weights(student), 60_000)
    for version in (7, 8, None):
        with pytest.raises(RunError, match="half-way"):
            sample(worker, version)
    worker.load_bucket(first, checksum(first))
    with pytest.raises(RunError, match="half-way"):
        sample(worker, 8)
    with pytest.raises(RunError, match="another one is half-way"):
        worker.begin_weights()
    for bucket in rest:
        worker.load_bucket(bucket, checksum(bucket))
    worker.finish_weights(8)
    assert sample(worker, 8)[0].weight_version == 8
    with pytest.raises(RunError, match="begin_weights comes first"):
        worker.load_bucket(first, checksum(first))


@pytest.mark.slow
def test_a_bucket_that_changed_in_transit_is_refused(model_directory, open_worker):
    worker = open_worker(model_directory("qwen2", seed=12))
    student = hugging_face(model_directory("qwen2", seed=12))
    bucket = next(pack(named_weights(student), 60_000))
    damaged = dataclasses.replace(bucket, arrays=tuple(np.roll(array, 64) for array in bucket.arrays))
    worker.begin_weights()
    with pytest.raises(RunError, match="checksum"):
        worker.load_bucket(damaged, checksum(bucket))
    with pytest.raises(RunError, match="half-way"):
        sample(worker, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "tied", "left_out"),
    [
        ("llama", True, "model.embed_tokens.weight"),  # the head is tied to it
        ("llama", False, "lm_head.weight"),
        ("llama", False, "model.layers.1.self_attn.k_proj.weight"),  # a third of a layer of the engine
        ("gpt2", True, "transformer.h.0.ln_1.bias"),
    ],
)
def test_a_tensor_that_was_left_out_is_noticed(family, tied, left_out, model_directory, open_worker):
    path = model_directory(family, tied=tied, seed=13)
    worker, student = open_worker(path), hugging_face(path)
    worker.begin_weights()
    for bucket in pack((pair for pair in named_weights(student) if pair[0] != left_out), 10**6):
        worker.load_bucket(bucket, checksum(bucket))
    layer = left_out.rpartition(".")[0].replace("k_proj", "qkv_proj")
    with pytest.raises(RunError, match=f"lack .* layers of the rollout engine's .*{layer} first"):
        worker.finish_weights(1)
    with pytest.raises(RunError):
        sample(worker, 1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tied_head_that_keeps_its_old_values_is_noticed(family, model_directory, open_worker, monkeypatch):
    path = model_directory(family, seed=13)
    worker, student = open_worker(path), hugging_face(path)
    perturb(student, 1)
    monkeypatch.setattr("actors.weights.host_memory.has_tied_head", lambda network: False)  # so that nothing refreshes the kernel's copy
    monkeypatch.setattr("actors.weights.host_memory.incomplete_layers", lambda network, tied_head: [])
    with pytest.raises(RunError, match="differ from those sent: .*(embed_tokens|wte).weight first"):
        publish(worker, student, 1)
