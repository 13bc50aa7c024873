"""The student module: packed equals padded, families that mix packed sequences are detected, attention by width."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from minirl.model.microbatch import make_microbatch
from minirl.model.output_head import OutputHead
from minirl.model.student import EAGER_WIDTH, StudentModule, packing_gap
from minirl.types import TokenSequence

VOCABULARY, WIDTH = 64, 16
SIZES = {
    "llama": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
    "gpt2": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": WIDTH},
}


def model_of(family: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
    }
    if family in ("llama", "qwen2"):
        sizes["intermediate_size"] = 32
    config = AutoConfig.for_model(family, **sizes, **SIZES[family])
    for dropout in ("dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
    with torch.no_grad():  # makes attention as sharp as in a trained model; with initial weights it treats all tokens alike
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def sequences(lengths=(9, 4, 30), seed: int = 0) -> list[TokenSequence]:
    draw = np.random.default_rng(seed)
    return [TokenSequence(draw.integers(0, VOCABULARY, n), np.arange(n) > min(n - 2, 5)) for n in lengths]


def module_of(model, **switches) -> StudentModule:
    teacher = OutputHead(torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(3)), None, 1.0, None, VOCABULARY)
    module = StudentModule(model, vocabulary=VOCABULARY, chunk_tokens=7, teacher_head=teacher)
    for name, value in switches.items():
        setattr(module, name, value)
    return module


def step(module: StudentModule, batch):
    """Every statistic of the targets, and the gradient of a sum of them."""
    hidden = torch.randn(len(batch.targets), 8, generator=torch.Generator().manual_seed(4))
    statistics = module(batch, hidden, 1.3)
    gradients = torch.autograd.grad((statistics.reverse_kl - 2 * statistics.student_logprobs).sum(), list(module.model.parameters()))
    return torch.stack([value for value in statistics if value is not None]), torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_packed_equals_padded(family, attention):
    model, batch = model_of(family, attention), make_microbatch(sequences())
    assert packing_gap(model) < 1e-5
    (padded, expected), (packed, gradient) = (step(module_of(model, packed=packed), batch) for packed in (False, True))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    assert (gradient - expected).norm() < 1e-5 * expected.norm()


def attention_by_boundaries(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, cu_seq_lens_k=None, **more):
    """Causal attention in each stretch between two boundaries, as the arguments of flash attention describe it; it sees nothing else."""
    assert attention_mask is None and torch.equal(cu_seq_lens_q, cu_seq_lens_k) and cu_seq_lens_q.dtype == torch.int32
    bounds = cu_seq_lens_q.tolist()
    assert bounds[-1] == query.shape[0] * query.shape[2]
    assert more["max_length_q"] == more["max_length_k"] == max(b - a for a, b in zip(bounds, bounds[1:], strict=False))
    rows = [states.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None] for states in (query, key, value)]  # [1, heads, tokens, size]
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(states[:, :, a:b] for states in rows), is_causal=True, scale=scaling, enable_gqa=True
        )
        for a, b in zip(bounds, bounds[1:], strict=False)
    ]
    return torch.cat(parts, 2)[0].transpose(0, 1).unflatten(0, (query.shape[0], query.shape[2])), None


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_flash_attention_gets_the_boundaries_of_the_sequences(family, packed, monkeypatch):
    """Without a device there is no flash attention; a slow function of the same interface stands here for it."""
    batch = make_microbatch(sequences())
    expected, gradient = step(module_of(model_of(family)), batch)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", attention_by_boundaries)
    model = model_of(family)
    model.config._attn_implementation = "flash_attention_2"
    values, flash_gradient = step(module_of(model, packed=packed), batch)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert (flash_gradient - gradient).norm() < 1e-5 * gradient.norm()


def test_a_family_that_ignores_restarting_positions_is_detected():
    model, batch = model_of("opt"), make_microbatch(sequences())
    assert packing_gap(model) > 0.1
    padded, packed = (step(module_of(model, packed=packed), batch)[0] for packed in (False, True))
    assert (packed - padded).abs().max() > 0.01  # packing would change its results


def test_packing_gap_leaves_the_model_in_training_mode_and_without_gradient():
    model = model_of("llama")
    packing_gap(model)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_without_targets_packs_too():
    module = module_of(model_of("llama"), packed=True)
    statistics = module(make_microbatch([]), None, 1.0)
    assert len(statistics.student_logprobs) == 0
    statistics.student_logprobs.sum().backward()


def test_attention_by_width_changes_the_kernel_and_not_the_result():
    model, kernels = model_of("llama"), []
    short, long = (make_microbatch(sequences(lengths)) for lengths in ((9, 4), (EAGER_WIDTH + 1, 4)))
    expected = [step(module_of(model), batch) for batch in (short, long, short)]
    module = module_of(model, attention_by_width=True)
    for batch, (values, gradient) in zip((short, long, short), expected, strict=True):
        values_by_width, gradient_by_width = step(module, batch)
        kernels.append(model.config._attn_implementation)
        torch.testing.assert_close(values_by_width, values, rtol=1e-5, atol=1e-5)
        assert (gradient_by_width - gradient).norm() < 1e-5 * gradient.norm()
    assert kernels == ["eager", "sdpa", "eager"]
