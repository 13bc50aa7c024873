"""Attention kernels: every family is computed as its eager kernel computes it, at every width, and a wrong kernel is noticed."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.falcon import modeling_falcon

from minirl.model.attention import KERNEL_TOLERANCE, kernel_gap, kernel_refusal, use_kernel
from minirl.model.loading import load_causal_lm
from minirl.model.microbatch import make_microbatch
from minirl.model.student import EAGER_WIDTH, StudentModule
from minirl.types import TokenSequence

VOCABULARY, HIDDEN, WINDOW = 128, 64, 32
COMMON = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 512}
GROUPED = COMMON | {"intermediate_size": 96, "num_key_value_heads": 1}
WINDOWED = GROUPED | {"sliding_window": WINDOW}
GEMMA = WINDOWED | {"head_dim": 32, "query_pre_attn_scalar": 32}
FAMILIES = {
    "gpt2": COMMON,
    "gpt_neox": COMMON | {"intermediate_size": 96},
    "gptj": COMMON | {"rotary_dim": 16},
    "gpt_neo": COMMON | {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 2, "window_size": WINDOW},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": 2, "n_head": 2},  # ALiBi
    "mpt": {"vocab_size": VOCABULARY, "d_model": HIDDEN, "n_layers": 2, "n_heads": 2, "max_seq_len": 512},  # ALiBi
    "falcon": COMMON,
    "llama": GROUPED,
    "mistral": WINDOWED,
    "qwen2": WINDOWED | {"use_sliding_window": True, "max_window_layers": 1},
    "gemma2": GEMMA | {"attn_logit_softcapping": 5.0},
    "gemma2, cap 50": GEMMA | {"attn_logit_softcapping": 50.0},
    "gemma3_text": GEMMA | {"num_hidden_layers": 6},
    "vaultgemma": GEMMA | {"attn_logit_softcapping": 5.0},
    "cohere2": WINDOWED | {"num_hidden_layers": 4},
    "granite_swa": WINDOWED,  # sinks
}
LENGTHS = (EAGER_WIDTH, EAGER_WIDTH + 1, 260)


def model_of(family: str, dtype: torch.dtype = torch.float32, attention: str | None = None, **changes) -> PreTrainedModel:
    """A random model with sharp attention; with initial weights a soft-cap or a bias would hardly show."""
    config = AutoConfig.for_model(family.split(",")[0], **(FAMILIES.get(family, {}) | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            sharp = any(part in name.lower() for part in ("q_proj", "k_proj", "query", "qkv", "c_attn"))
            parameter.data = torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5 * (2.5 if sharp else 1.0)
        elif "sinks" in name:
            parameter.data = torch.randn(parameter.shape)
    return model.to(dtype).eval()


def logprobs_by_length(model: PreTrainedModel) -> list[torch.Tensor]:
    """Log-probs of the tokens of sequences of each length, from the module as the learner runs it on a CPU."""
    module = StudentModule(model.eval(), vocabulary=VOCABULARY, chunk_tokens=1024)
    module.attention_by_width = True
    with torch.no_grad():
        return [module(make_microbatch([sequence(length)])).student_logprobs for length in LENGTHS]


def sequence(length: int) -> TokenSequence:
    return TokenSequence(np.random.default_rng(0).integers(3, VOCABULARY, length), np.arange(length) > 0)


@torch.no_grad()
def eager_logprobs(model: PreTrainedModel, length: int) -> torch.Tensor:
    ids = torch.from_numpy(sequence(length).tokens)[None]
    return model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_equals_its_eager_kernel_at_every_width(family, tmp_path):
    model_of(family, attention="eager").save_pretrained(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    loaded = load_causal_lm(str(tmp_path), torch.float32, dropout=False)
    for length, logprobs in zip(LENGTHS, logprobs_by_length(loaded), strict=True):
        torch.testing.assert_close(logprobs, eager_logprobs(reference, length), atol=1e-4, rtol=0)


def test_falcon_with_alibi_adds_its_bias_once(tmp_path, monkeypatch):
    """Falcon's definition is softmax((q k + alibi) / sqrt(d)). transformers' eager kernel adds alibi / sqrt(d) twice: half is right."""
    model_of("falcon", attention="eager", alibi=True, new_decoder_architecture=False).save_pretrained(tmp_path)
    loaded = load_causal_lm(str(tmp_path), torch.float32, dropout=False)
    got = logprobs_by_length(loaded)
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    twice = eager_logprobs(eager, LENGTHS[-1])
    bias = modeling_falcon.build_alibi_tensor
    monkeypatch.setattr(modeling_falcon, "build_alibi_tensor", lambda *arguments, **named: bias(*arguments, **named) / 2)
    for length, logprobs in zip(LENGTHS, got, strict=True):
        torch.testing.assert_close(logprobs, eager_logprobs(eager, length), atol=1e-4, rtol=0)
    assert (got[-1] - twice).abs().max() > 0.1
    assert "twice" in kernel_refusal(eager.config, "eager")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gpt2", "falcon", "gemma3_text", "cohere2"])
def test_sdpa_passes_the_check_where_it_computes_the_family(family, dtype):
    """In bfloat16 the difference is rounding, which does not add up over layers."""
    model = model_of(family, dtype).train()
    gap = kernel_gap(model, "sdpa", 300)
    assert 0 < gap < KERNEL_TOLERANCE[str(dtype).removeprefix("torch.")]
    assert model.config._attn_implementation == "sdpa" and model.training
    assert not any(module._forward_hooks for module in model.modules())


def without(*left_out: str):
    """An sdpa kernel that leaves out what it gets under these names."""
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def kernel(module, query, key, value, attention_mask=None, **named):
        if "attention_mask" in left_out:
            attention_mask = None
        if "scaling" in left_out:
            named["scaling"] = None
        return sdpa(module, query, key, value, attention_mask, **named)

    return kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "left_out"), [("mistral", "attention_mask"), ("qwen2", "attention_mask"), ("granite", "scaling")])
def test_a_kernel_that_leaves_something_out_fails_the_check(family, left_out, dtype, monkeypatch):
    model = model_of(family, dtype, **(GROUPED | {"attention_multiplier": 0.5} if family == "granite" else {}))
    with monkeypatch.context() as patch:
        patch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", without(left_out))
        gap = kernel_gap(model, "sdpa", 300)
    tolerance = KERNEL_TOLERANCE[str(dtype).removeprefix("torch.")]
    assert gap > 2 * tolerance
    if left_out == "attention_mask":  # within the window nothing is wrong, hence the check at the run's longest sequence
        with monkeypatch.context() as patch:
            patch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", without(left_out))
            assert kernel_gap(model, "sdpa", WINDOW) < tolerance


@pytest.mark.parametrize("cap", [5.0, 50.0])
def test_the_check_itself_notices_a_soft_cap_that_is_left_out(cap):
    assert kernel_gap(model_of("gemma2", attn_logit_softcapping=cap), "sdpa", 100) > 10 * KERNEL_TOLERANCE["float32"]


def test_a_check_fits_the_positions_of_the_model_and_the_memory(monkeypatch):
    model, lengths = model_of("gpt2", max_position_embeddings=64), []
    model.base_model.register_forward_pre_hook(lambda _, __, named: lengths.append(named["input_ids"].shape[1]), with_kwargs=True)
    kernel_gap(model, "sdpa", 10_000)
    monkeypatch.setattr("minirl.model.attention.CHECK_BYTES", 12 * 2 * 30**2)  # two heads
    kernel_gap(model, "sdpa", 10_000)
    assert lengths == [64, 64, 30, 30]


@pytest.mark.parametrize(
    ("family", "kernel", "reason"),
    [
        ("gemma2", "sdpa", "the sdpa kernel leaves out the attention soft-cap of Gemma2ForCausalLM"),
        ("bloom", "sdpa", "transformers has no sdpa kernel for BloomForCausalLM"),
        ("granite_swa", "sdpa", "no sdpa kernel"),
        ("bloom", "flash_attention_2", "no flash attention for BloomForCausalLM"),
        ("granite_swa", "flash_attention_2", "transformers runs GraniteSWAForCausalLM, of flash attention, only with"),
        ("gpt_neo", "flash_attention_2", "the flash attention of GPTNeoForCausalLM cannot be compared with its eager kernel"),
        ("llama", "flash_attention_2", None),
        ("gemma2", "eager", None),
    ],
)
def test_a_refusal_names_the_model_and_what_is_left_out(family, kernel, reason):
    refusal = kernel_refusal(AutoConfig.for_model(family, **FAMILIES[family]), kernel)
    assert refusal is None if reason is None else reason in refusal


def test_a_kernel_is_switched_also_where_transformers_cannot_switch_it():
    model = model_of("falcon")
    ids = torch.from_numpy(sequence(100).tokens)[None]
    with torch.no_grad():
        outputs = []
        for kernel in ("eager", "sdpa"):
            use_kernel(model, kernel)
            outputs.append(model(input_ids=ids).logits)
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=0)
    assert not torch.equal(*outputs)  # two kernels ran: they round differently
