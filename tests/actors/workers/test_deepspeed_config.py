"""DeepSpeed settings and the attention implementation that follow from the learner's configuration."""

import pytest
from transformers import BloomConfig, FalconConfig, Gemma2Config, GPTJConfig, LlamaConfig

from actors.config import LearnerConfig
from actors.workers import deepspeed_config as learner_settings
from actors.workers.deepspeed_config import attention_kernels, deepspeed_config
from minirl.config.stages import SftConfig
from minirl.errors import InputError


@pytest.fixture(params=[True, False])
def flash_installed(request, monkeypatch):
    monkeypatch.setattr(learner_settings, "is_flash_attn_2_available", lambda: request.param)
    return request.param


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "bfloat16"), ("cuda", "float32"), ("cuda", "bfloat16")])
def test_flash_attention_is_used_where_it_can_run_and_refused_elsewhere(flash_installed, device, dtype):
    can_run = flash_installed and (device, dtype) == ("cuda", "bfloat16")
    flash = ["flash_attention_2"] if can_run else []
    assert attention_kernels(LearnerConfig(dtype=dtype), device, LlamaConfig()) == [*flash, "sdpa", "eager"]
    assert attention_kernels(LearnerConfig(dtype=dtype, attention="sdpa"), device, LlamaConfig()) == ["sdpa"]
    config = LearnerConfig(dtype=dtype, attention="flash_attention_2")
    if can_run:
        assert attention_kernels(config, device, LlamaConfig()) == ["flash_attention_2"]
    else:
        with pytest.raises(InputError, match="learner.attention: flash_attention_2 needs a GPU"):
            attention_kernels(config, device, LlamaConfig())


def test_only_kernels_that_compute_the_model_are_tried(monkeypatch):
    monkeypatch.setattr(learner_settings, "is_flash_attn_2_available", lambda: True)

    def kernels(network, device: str = "cuda", **switches) -> list[str]:
        return attention_kernels(LearnerConfig(dtype="bfloat16", **switches), device, network)

    assert kernels(LlamaConfig()) == ["flash_attention_2", "sdpa", "eager"]
    assert kernels(Gemma2Config()) == ["flash_attention_2", "eager"]  # sdpa knows no soft-cap
    assert kernels(Gemma2Config(), "cpu") == ["eager"]
    assert kernels(Gemma2Config(attn_logit_softcapping=None), "cpu") == ["sdpa", "eager"]
    assert kernels(BloomConfig()) == kernels(GPTJConfig()) == ["eager"]
    assert kernels(FalconConfig()) == ["sdpa", "eager"]
    assert kernels(FalconConfig(alibi=True)) == ["sdpa"]
    with pytest.raises(InputError, match="learner.attention: the sdpa kernel leaves out the attention soft-cap of Gemma2ForCausalLM; set"):
        kernels(Gemma2Config(), attention="sdpa")
    with pytest.raises(InputError, match="learner.attention: transformers has no sdpa kernel for BloomForCausalLM"):
        kernels(BloomConfig(), attention="sdpa")


def test_torchs_fused_adam_is_used_unless_the_optimizer_is_offloaded():
    training = SftConfig(learning_rate=1e-3)
    on_device, offloaded = (deepspeed_config(LearnerConfig(offload_optimizer=o), training)["optimizer"]["params"] for o in (False, True))
    assert on_device["torch_adam"] and on_device["fused"]
    assert not {"torch_adam", "fused"} & set(offloaded)
    assert "fused" not in deepspeed_config(LearnerConfig(optimizer="sgd"), training)["optimizer"]["params"]
