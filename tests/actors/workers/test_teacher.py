"""The teacher worker's scores, compared with Hugging Face."""

import numpy as np
import pytest
import torch

from actors.config import TeacherConfig
from actors.workers.teacher import TeacherWorker
from minirl.errors import InputError, RunError
from minirl.types import TokenSequence, tensor_from_numpy
from tests.actors.conftest import MAX_LENGTH, hugging_face

pytestmark = pytest.mark.slow

CASES = {
    "llama": (("llama", {"hidden": 96, "heads": 3, "layers": 3, "tied": False}), 512, 1.0),
    "gpt2": (("gpt2", {}), 512, 1.0),
    "qwen2 padded, at a temperature": (("qwen2", {"vocab": 576, "tokenizer_vocab": 500}), 500, 0.7),
}


def teacher_worker(
    path: str, shared: int = 512, temperature: float = 1.0, dtype: str = "float32", batch: int = 256, check_every: int = 1
) -> TeacherWorker:
    config = TeacherConfig(model=path, dtype=dtype, kv_cache_gib=0.125, micro_batch_tokens=batch, check_every=check_every)
    return TeacherWorker(path, config, device="cpu", threads=1, max_model_len=MAX_LENGTH, shared_vocabulary=shared, temperature=temperature)


def sequences(vocab: int = 500) -> list[TokenSequence]:
    """Six sequences. Most have targets at the end; one has two separate stretches of them, one has none, two start at the second token."""
    draw = np.random.default_rng(0)
    tokens = [draw.integers(3, vocab, size=n) for n in (20, 128, 37, 64, 15, 2)]
    targets = [np.arange(len(t)) >= start for t, start in zip(tokens, (12, 90, 1, 40, 15, 1), strict=True)]
    targets[3][[10, 11, 12, 50]] = [True, True, True, False]
    return [TokenSequence(t, m) for t, m in zip(tokens, targets, strict=True)]


@torch.no_grad()
def expected(network, sequence: TokenSequence, shared: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [N, shared] of the rows that predict targets, their log-normalisers, the targets' log-probs; float64."""
    positions = np.flatnonzero(sequence.is_target)
    logits = network(torch.from_numpy(sequence.tokens)[None]).logits[0, positions - 1, :shared].double()
    soft = logits / temperature
    return logits, soft.logsumexp(-1), soft.log_softmax(-1)[torch.arange(len(positions)), sequence.tokens[positions]]


@pytest.mark.parametrize("case", CASES)
def test_scores_equal_hugging_face(case, model_directory):
    (family, shape), shared, temperature = CASES[case]
    path = model_directory(family, **shape)
    network, worker = hugging_face(path), teacher_worker(path, shared, temperature)
    head = network.get_output_embeddings().weight.detach()[:shared]
    mixed = [temperature, 1.0, 1.3, temperature, 1.0, 0.5]  # rollouts and fixed sequences in one call
    try:
        scored = worker.score(sequences()) + worker.score(sequences(), mixed)
    finally:
        worker.close()
    for sequence, scores, divisor in zip(2 * sequences(), scored, [temperature] * 6 + mixed, strict=True):
        logits, normalizers, logprobs = expected(network, sequence, shared, divisor)
        assert scores.hidden.dtype == np.float32
        assert scores.hidden.shape == (sequence.targets, network.config.hidden_size)
        torch.testing.assert_close(tensor_from_numpy(scores.log_normalizers).double(), normalizers, atol=1e-5, rtol=0)
        torch.testing.assert_close(tensor_from_numpy(scores.logprobs).double(), logprobs, atol=1e-5, rtol=0)
        torch.testing.assert_close((tensor_from_numpy(scores.hidden) @ head.T).double(), logits, atol=3e-5, rtol=0)


def test_check_every_only_turns_the_other_log_probs_into_nan(model_directory):
    path = model_directory("llama", tied=False, seed=7)
    scores_by_check = {}
    for check_every in (1, 3):
        worker = teacher_worker(path, check_every=check_every)
        try:
            scores_by_check[check_every] = worker.score(sequences())
        finally:
            worker.close()
    for sequence, every, some in zip(sequences(), scores_by_check[1], scores_by_check[3], strict=True):
        rows = np.flatnonzero(sequence.is_target)
        checked = (rows - rows[:1]) % 3 == 0  # counted from the first target
        for name in ("logprobs", "log_normalizers"):
            full, partial = getattr(every, name), getattr(some, name)
            assert np.isfinite(full).all() and (np.isfinite(partial) == checked).all()
            np.testing.assert_allclose(partial[checked], full[checked], atol=1e-5)
        np.testing.assert_allclose(some.hidden, every.hidden, atol=1e-5)


@pytest.fixture(scope="module")
def bfloat16_teacher(model_directory):
    path = model_directory("llama", tied=False, seed=7)
    worker = teacher_worker(path, dtype="bfloat16", batch=128)
    yield worker, hugging_face(path)
    worker.close()


def test_bfloat16_states_are_exact_and_their_log_normalisers_match(bfloat16_teacher):
    """The shipped states, multiplied with the head in float32, give the shipped log-normalisers. The learner uses this as a checksum.

    Tolerance: the rounding of the engine's own logits, which are bfloat16 on a CPU: 8 bits of the largest logit.
    """
    worker, network = bfloat16_teacher
    head = network.get_output_embeddings().weight.detach().bfloat16().float()
    for sequence, scores in zip(sequences(), worker.score(sequences()), strict=True):
        assert scores.hidden.dtype == np.uint16
        logits = tensor_from_numpy(scores.hidden).float() @ head.T
        rounding = 2**-8 * max(logits.abs().flatten().tolist(), default=0.0)
        torch.testing.assert_close(tensor_from_numpy(scores.log_normalizers), logits.logsumexp(-1), atol=rounding, rtol=0)
        targets = sequence.tokens[sequence.is_target]
        chosen = logits.log_softmax(-1)[torch.arange(len(targets)), targets]
        torch.testing.assert_close(tensor_from_numpy(scores.logprobs), chosen, atol=2 * rounding, rtol=0)
        reference = expected(network, sequence, 512, 1.0)[0]
        assert not len(targets) or (logits - reference).abs().mean() < 0.05  # bfloat16 rounding through the layers


def test_scores_do_not_depend_on_the_other_sequences(bfloat16_teacher):
    worker, _ = bfloat16_teacher
    together = worker.score(sequences())[2]
    (alone,) = worker.score(sequences()[2:3])
    assert np.abs(together.log_normalizers - alone.log_normalizers).max() < 0.02


def test_invalid_sequences_and_models_are_refused(bfloat16_teacher, model_directory):
    worker, _ = bfloat16_teacher
    tokens = np.array([5, 6, 700])
    with pytest.raises(RunError, match="target token 700 is not among the 512"):
        worker.score([TokenSequence(tokens, np.array([False, True, True]))])
    with pytest.raises(RunError, match="exceeds the teacher engine's"):
        worker.score([TokenSequence(np.full(MAX_LENGTH + 1, 5), np.arange(MAX_LENGTH + 1) > 3)])
    with pytest.raises(InputError, match="at most 64 tokens"):
        teacher_worker(model_directory("gpt2", max_positions=64))
