"""Reading and saving models: agreement with transformers, and the refusal of unsupported models."""

import gc
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig, T5Config

from minirl.errors import InputError
from minirl.model.loading import check_supported, fingerprint, load_causal_lm, resolve_model, save_weights
from minirl.model.output_head import read_head
from tests.minirl.model.tiny_families import FAMILIES, TOKENS, VOCABULARY, logits_of

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


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_and_buffers_go_to_the_named_device(models, name):
    """meta stands for a GPU: nothing of the model may be left on the host."""
    model = load_causal_lm(models[name], torch.bfloat16, device="meta")
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}


def test_on_a_cpu_weights_of_the_files_dtype_stay_mapped(tmp_path):
    """Ranks of one node then share the file's pages. With another dtype each rank needs its own copy."""
    config = GPT2Config(vocab_size=16384, n_embd=1024, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    weight_bytes = (tmp_path / "model.safetensors").stat().st_size
    grown = {}
    for dtype in (torch.bfloat16, torch.float32):
        before = private_bytes()
        model = load_causal_lm(str(tmp_path), dtype)
        grown[dtype] = private_bytes() - before
        del model
    assert grown[torch.bfloat16] < 0.25 * weight_bytes < 1.5 * weight_bytes < grown[torch.float32]


def private_bytes() -> int:
    """Memory of this process that it shares with no other."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


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
    with pytest.raises(InputError, match="the hub does not provide it: the model is not in .*HF_HUB_OFFLINE forbids"):
        resolve_model("nobody/no-such-model", "teacher.model")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (T5Config(architectures=["T5ForConditionalGeneration"]), "T5ForConditionalGeneration is not a decoder-only"),
        (GPT2Config(architectures=["GPT2ForSequenceClassification"]), "GPT2ForSequenceClassification is not a decoder-only"),
        (GPT2Config(), r".*config\.json names no class of the model \(architectures\)"),
        (GPT2Config(n_layer=10**9, architectures=["GPT2LMHeadModel"]), r".*config\.json has num_hidden_layers = 1000000000; correct it"),
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
    with pytest.raises(InputError, match=r"^teacher.model: transformers cannot read .*config.json"):
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
