"""Pruning, reading and saving models: agreement with transformers, and the refusal of unsupported models."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    MixtralConfig,
    PhiConfig,
    Qwen3Config,
    T5Config,
)

from minirl.errors import InputError
from minirl.model.loading import check_supported, fingerprint, load_causal_lm, resolve_model, save_weights
from minirl.model.output_head import check_head, read_head, student_head
from minirl.model.pruning import prune_layers
from tests.tiny import tiny_model

VOCABULARY = 64
TOKENS = torch.tensor([[5, 9, 30, 11, 2, 63, 7]])
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
def models(tmp_path_factory):
    """Directories of tiny models, five layers deep."""
    root, shape = tmp_path_factory.mktemp("models"), {"vocab": VOCABULARY, "hidden": 32, "layers": 5}
    return {
        f"{family} {'tied' if tied else 'untied'}": tiny_model(root / f"{family}-{tied}", family, tied=tied, **shape)
        for family in ("llama", "gpt2", "qwen2")
        for tied in (True, False)
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


FAMILIES = [f"{family} {tying}" for family in ("llama", "gpt2", "qwen2") for tying in ("tied", "untied")]


@torch.no_grad()
def logits_of(directory: str) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(directory).eval()(TOKENS).logits


@torch.no_grad()
def hidden_of(directory: str) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(directory).eval().base_model(TOKENS).last_hidden_state


def blocks_of(model) -> nn.ModuleList:
    return model.transformer.h if isinstance(model, GPT2LMHeadModel) else model.model.layers


# --- pruning a student from its teacher ---


@pytest.mark.parametrize("name", ["llama tied", "gpt2 tied", "qwen2 untied"])
def test_a_pruned_student_is_the_teacher_with_the_other_layers_removed_by_hand(models, tmp_path, name):
    directory = prune_layers(models[name], [0, 2, 4], str(tmp_path / "student"))
    by_hand = AutoModelForCausalLM.from_pretrained(models[name]).eval()
    blocks = blocks_of(by_hand)
    for layer in (3, 1):
        del blocks[layer]
    for index, block in enumerate(blocks):
        (block.attn if name.startswith("gpt2") else block.self_attn).layer_idx = index
    pruned = AutoModelForCausalLM.from_pretrained(directory).eval()
    assert pruned.config.num_hidden_layers == len(blocks_of(pruned)) == 3
    expected = dict(by_hand.named_parameters())
    for parameter_name, parameter in pruned.named_parameters():
        assert torch.equal(parameter, expected.pop(parameter_name)), parameter_name
    assert not expected
    with torch.no_grad():
        assert torch.equal(pruned(TOKENS).logits, by_hand(TOKENS, use_cache=False).logits)
    assert not torch.allclose(logits_of(directory), logits_of(models[name]), atol=1e-2)


def test_a_pruned_student_has_the_tokenizer_and_the_generation_settings(models, tmp_path):
    (Path(models["llama tied"]) / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    directory = Path(prune_layers(models["llama tied"], [0, 4], str(tmp_path / "student")))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (directory / file).read_bytes() == (Path(models["llama tied"]) / file).read_bytes(), file
    assert not list(tmp_path.glob("*.partial"))


def test_layers_of_several_kinds_keep_their_kind(tmp_path):
    config = Gemma2Config(**(SMALL | {"num_hidden_layers": 4}), **SPECIAL, num_key_value_heads=1, head_dim=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "teacher")
    directory = prune_layers(str(tmp_path / "teacher"), [0, 2, 3], str(tmp_path / "student"))
    pruned = AutoModelForCausalLM.from_pretrained(directory)
    assert pruned.config.layer_types == [config.layer_types[i] for i in (0, 2, 3)]


@pytest.mark.parametrize("layers", [[], [0, 5], [2, 1], [1, 1]])
def test_layers_that_the_teacher_does_not_have(models, tmp_path, layers):
    with pytest.raises(InputError, match="some of the teacher's 5 layers, 0 to 4, each once and in order"):
        prune_layers(models["llama tied"], layers, str(tmp_path / "student"))
    assert not list(tmp_path.iterdir())


# --- output heads ---


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


# --- loading and saving ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_saved_weights_are_a_complete_model(models, tmp_path, name, dtype):
    model = AutoModelForCausalLM.from_pretrained(models[name], dtype=dtype).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_weights(dict(model.state_dict()), models[name], str(tmp_path / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto").eval()
    assert saved.dtype == dtype and saved.config.tie_word_embeddings is model.config.tie_word_embeddings
    with torch.no_grad():
        assert torch.equal(saved(TOKENS).logits, model(TOKENS).logits)
    assert torch.equal(read_head(str(tmp_path / "saved"), VOCABULARY).weight, model.get_output_embeddings().weight)
    assert resolve_model(str(tmp_path / "saved"), "student.model") and (tmp_path / "saved" / "tokenizer.json").is_file()
    if model.config.tie_word_embeddings:
        assert saved.get_input_embeddings().weight is saved.get_output_embeddings().weight


def test_saving_again_replaces_what_was_there(models, tmp_path):
    weights = AutoModelForCausalLM.from_pretrained(models["llama tied"]).state_dict()
    (tmp_path / "saved.partial").mkdir()
    (tmp_path / "saved.partial" / "leftover").write_text("of a killed export")
    save_weights(dict(weights), models["llama tied"], str(tmp_path / "saved"))
    save_weights({name: 2 * tensor for name, tensor in weights.items()}, models["llama tied"], str(tmp_path / "saved"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(again[name], 2 * tensor) for name, tensor in weights.items())
    assert [p.name for p in tmp_path.iterdir()] == ["saved"] and not (tmp_path / "saved" / "leftover").exists()


def test_without_dropout_training_mode_is_evaluation_mode(models):
    with torch.no_grad():
        plain = load_causal_lm(models["gpt2 tied"], torch.float32, dropout=False)
        assert plain.training and torch.equal(plain(TOKENS).logits, logits_of(models["gpt2 tied"]))
        dropping = load_causal_lm(models["gpt2 tied"], torch.float32, dropout=True)
        assert not torch.allclose(dropping(TOKENS).logits, logits_of(models["gpt2 tied"]), atol=1e-2)


# --- accepted and refused models ---


def test_a_model_directory_is_used_in_place(models):
    assert resolve_model(models["llama tied"], "student.model") == str(Path(models["llama tied"]).resolve())


@pytest.mark.parametrize(
    ("files", "sentence"),
    [({}, "holds no config.json"), ({"config.json": "{}", "pytorch_model.bin": ""}, "holds no model.safetensors")],
)
def test_a_directory_that_is_no_model(tmp_path, files, sentence):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"^student.model: {re.escape(str(tmp_path))} .*{sentence}"):
        resolve_model(str(tmp_path), "student.model")


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_missing_path_is_not_looked_up_on_the_hub(name):
    with pytest.raises(InputError, match=r"teacher.model: .* is not a model: there is no such directory"):
        resolve_model(name, "teacher.model")


def test_a_hub_model_that_cannot_be_downloaded(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="neither a local directory nor a model that the hub provides"):
        resolve_model("nobody/no-such-model", "teacher.model")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (T5Config(architectures=["T5ForConditionalGeneration"]), "T5ForConditionalGeneration is not a decoder-only"),
        (GPT2Config(architectures=["GPT2ForSequenceClassification"]), "GPT2ForSequenceClassification is not a decoder-only"),
        (GPT2Config(), "none is not a decoder-only"),
        (MixtralConfig(architectures=["MixtralForCausalLM"]), "MixtralForCausalLM is a mixture of experts"),
    ],
)
def test_other_kinds_of_models_are_refused(tmp_path, config, sentence):
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"^student.model: {sentence}"):
        check_supported(str(tmp_path), "student.model")


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "no-such-type"}'])
def test_a_config_that_transformers_cannot_read(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"^teacher.model: transformers cannot read the config of"):
        check_supported(str(tmp_path), "teacher.model")


@pytest.mark.parametrize("name", FAMILIES)
def test_dense_causal_models_are_accepted(models, name):
    assert check_supported(models[name], "student.model").vocab_size == VOCABULARY


def test_a_fingerprint_is_the_same_for_a_copy_and_differs_after_a_change(models, tmp_path):
    directory = models["llama tied"]
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    assert fingerprint(str(copy)) == fingerprint(str(directory))
    weights = load_file(copy / "model.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, copy / "model.safetensors")
    assert fingerprint(str(copy)) != fingerprint(str(directory))
