"""Output heads: read alone they compute the model's logits, and a family that does more to its logits is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    PhiConfig,
    Qwen3Config,
)

from minirl.errors import InputError
from minirl.model.output_head import check_head, read_head, student_head
from tests.minirl.model.tiny_families import FAMILIES, TOKENS, VOCABULARY, logits_of

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 2}
EXOTIC = {
    "scaled (cohere)": CohereConfig(**SMALL, **SPECIAL, num_key_value_heads=1, logit_scale=0.25),
    "divided (granite)": GraniteConfig(**SMALL, **SPECIAL, num_key_value_heads=1, logits_scaling=3.0),
    "capped (gemma2)": Gemma2Config(**SMALL, **SPECIAL, num_key_value_heads=1, head_dim=16, final_logit_softcapping=2.0),
    "biased (phi)": PhiConfig(**SMALL, **SPECIAL),
    "plain (qwen3)": Qwen3Config(**SMALL, **SPECIAL, num_key_value_heads=1, head_dim=16, tie_word_embeddings=False),
}


@pytest.fixture(scope="module")
def exotic(tmp_path_factory):
    """Directories of families that do more to their logits than a product, each with random weights."""
    directories = {}
    for name, config in EXOTIC.items():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data += 0.5 * torch.randn_like(parameter)
        directories[name] = str(tmp_path_factory.mktemp("exotic"))
        model.save_pretrained(directories[name])
    return directories


@torch.no_grad()
def hidden_of(directory: str) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(directory).eval().base_model(TOKENS).last_hidden_state


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_read_alone_computes_the_models_logits(models, name):
    head = read_head(models[name], VOCABULARY)
    assert torch.equal(head.logits(hidden_of(models[name])), logits_of(models[name]))


@pytest.mark.parametrize("name", EXOTIC)
def test_scales_caps_and_biases_belong_to_the_head(exotic, name):
    head = read_head(exotic[name], VOCABULARY)
    torch.testing.assert_close(head.logits(hidden_of(exotic[name])), logits_of(exotic[name]))
    torch.testing.assert_close(head.logits(hidden_of(exotic[name]), temperature=1.7), logits_of(exotic[name]) / 1.7)
    model = AutoModelForCausalLM.from_pretrained(exotic[name])
    model_head = student_head(model, VOCABULARY)
    assert torch.equal(model_head.weight, head.weight)
    assert (model_head.scale, model_head.soft_cap) == (head.scale, head.soft_cap)
    check_head(model, "student")


def test_the_head_is_cut_to_the_shared_vocabulary(models):
    full, shared = read_head(models["gpt2 tied"], VOCABULARY), read_head(models["gpt2 tied"], 50)
    hidden = hidden_of(models["gpt2 tied"])
    torch.testing.assert_close(shared.logits(hidden), full.logits(hidden)[..., :50])


def test_the_head_is_found_in_any_of_several_files(models, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(models["llama untied"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(read_head(str(tmp_path), VOCABULARY).weight, model.lm_head.weight)


def test_the_head_of_files_without_the_models_prefix(models, tmp_path):
    """The published GPT-2 names its tensors `wte.weight`, not `transformer.wte.weight`."""
    weights = load_file(Path(models["gpt2 tied"]) / "model.safetensors")
    save_file({name.removeprefix("transformer."): tensor for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((Path(models["gpt2 tied"]) / "config.json").read_text())
    assert torch.equal(read_head(str(tmp_path), VOCABULARY).weight, read_head(models["gpt2 tied"], VOCABULARY).weight)


def test_a_model_without_its_head(models, tmp_path):
    weights = load_file(Path(models["llama untied"]) / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((Path(models["llama untied"]) / "config.json").read_text())
    with pytest.raises(InputError, match="holds no output head of LlamaForCausalLM; save the model with its head"):
        read_head(str(tmp_path), VOCABULARY)


class Doubling(GPT2LMHeadModel):
    """A family that changes its logits in a way that no config key states."""

    def forward(self, *arguments, **named):
        output = super().forward(*arguments, **named)
        output.logits = 2 * output.logits
        return output


@pytest.mark.parametrize("training", [True, False])
def test_a_family_with_an_unknown_head_is_refused_also_under_dropout(training):
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(config).train(training)
    check_head(plain, "student")
    assert plain.training is training
    with pytest.raises(InputError, match="student: Doubling does more to its logits"):
        check_head(Doubling(config).train(training), "student")
