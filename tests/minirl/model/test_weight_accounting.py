"""Every tensor of a model directory is accounted for: what is missing, left over, misshapen or doubled is refused in a sentence."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3MoeConfig,
)

from minirl.errors import InputError, RunError
from minirl.model.loading import load_causal_lm, save_weights
from minirl.model.output_head import read_head
from minirl.model.pruning import prune_layers
from minirl.model.weight_accounting import check_weights
from tests.tiny import tiny_model

VOCABULARY = 64
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = SMALL | {"intermediate_size": 48, "num_key_value_heads": 1}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 2}
FAMILIES: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2),
    "gpt_neox": GPTNeoXConfig(**SMALL, **SPECIAL, intermediate_size=48),
    "gptj": GPTJConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, rotary_dim=8),
    "opt, projected": OPTConfig(**SMALL, **SPECIAL, ffn_dim=48, word_embed_proj_dim=16),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2),
    "falcon": FalconConfig(**SMALL, **SPECIAL),
    "llama": LlamaConfig(**WIDE, **SPECIAL),
    "phi3": Phi3Config(**WIDE, **SPECIAL),
    "mixtral": MixtralConfig(**WIDE, **SPECIAL, num_local_experts=3),
    "qwen3_moe": Qwen3MoeConfig(**WIDE, **SPECIAL, head_dim=16, num_experts=3, moe_intermediate_size=16),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Family -> directory of a tiny random model."""
    directories = {}
    for name, config in FAMILIES.items():
        torch.manual_seed(0)
        directories[name] = str(tmp_path_factory.mktemp("family"))
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directories[name])
    return directories


def rewrite(directory, change) -> str:
    file = Path(directory) / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return str(directory)


def edit_config(directory, **changes) -> None:
    file = Path(directory) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def renamed(pattern, replacement):
    return lambda weights: {re.sub(pattern, replacement, name): tensor for name, tensor in weights.items()}


def without(pattern):
    return lambda weights: {name: tensor for name, tensor in weights.items() if not re.search(pattern, name)}


def unmerged(weights):
    adapters = {
        f"{name[: -len('weight')]}lora_{part}.default.weight": torch.zeros(2, 2) for name in weights if "q_proj" in name for part in "AB"
    }
    return renamed(r"q_proj\.weight", "q_proj.base_layer.weight")(weights) | adapters


def repeated(weights):
    return weights | {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in weights.items() if "layers.1." in name}


# --- whole models ---


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_as_transformers_writes_it_is_whole_and_its_head_is_the_models(families, name):
    check_weights(families[name], "teacher.model")
    model = load_causal_lm(families[name], torch.float32)
    assert torch.equal(read_head(families[name], VOCABULARY).weight, model.get_output_embeddings().weight)


@pytest.mark.parametrize("name", ["gpt2", "opt, projected", "bloom"])
def test_published_files_without_the_prefix_of_the_base_model(families, tmp_path, name):
    shutil.copytree(families[name], tmp_path / "model")
    path = rewrite(tmp_path / "model", renamed(r"^(transformer|model)\.", ""))
    check_weights(path, "teacher.model")
    assert torch.equal(read_head(path, VOCABULARY).weight, read_head(families[name], VOCABULARY).weight)


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("gpt2", {"h.0.attn.bias": (1, 1, 8, 8), "transformer.h.0.attn.masked_bias": ()}),
        ("gptj", {"transformer.h.0.attn.bias": (1, 1, 8, 8)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": (4,), "gpt_neox.layers.1.attention.bias": (1, 1, 8, 8)}),
        ("llama", {"model.layers.1.self_attn.rotary_emb.inv_freq": (8,)}),
    ],
)
def test_buffers_that_are_recomputed_are_no_weights(families, tmp_path, name, buffers):
    shutil.copytree(families[name], tmp_path / "model")
    path = rewrite(tmp_path / "model", lambda weights: weights | {key: torch.zeros(shape) for key, shape in buffers.items()})
    check_weights(path, "teacher.model")
    load_causal_lm(path, torch.float32)


# --- partial and foreign models ---

BROKEN = {
    "torch.compile": (renamed("^", "_orig_mod."), r"21 missing \(lm_head\.weight.*21 unexpected \(_orig_mod.*strip `_orig_mod\.`"),
    "torch.compile, inside": (renamed(r"^model\.", "model._orig_mod."), r"torch\.compile.*strip `_orig_mod\.`"),
    "DDP": (renamed("^", "module."), r"DDP.*strip `module\.`"),
    "another module": (renamed("^", "student."), r"prefix of another module; strip `student\.`"),
    "LoRA": (unmerged, r"2 missing \(model\.layers\.0\.self_attn\.q_proj\.weight.*never merged; merge them"),
    "a block": (without(r"layers\.1\."), r"9 missing .*block 1 is not \(or not all\) in the file"),
    "a norm": (without(r"^model\.norm"), r"1 missing \(model\.norm\.weight\); name a complete model"),
    "the head": (without("lm_head"), r"1 missing \(lm_head\.weight\); the output head is not in the file; save the model with its head"),
    "blocks too many": (repeated, r"9 unexpected .*has 3 blocks, and config.json says 2"),
    "a value head": (lambda w: w | {"v_head.summary.weight": torch.zeros(1, 32)}, r"1 unexpected \(v_head.*value, reward"),
    "quantised": (renamed(r"up_proj\.weight", "up_proj.qweight"), r"it is quantised, and config\.json has no quantization_config"),
    "integers": (lambda w: w | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, r"model\.norm\.weight .* is stored as I8"),
    "another shape": (
        lambda w: w | {"model.norm.weight": torch.ones(31)},
        r"1 of another shape \(model\.norm\.weight is \[31\], config\.json gives \[32\]\); config\.json does not belong",
    ),
    "nothing": (lambda w: {}, "21 missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_the_whole_model_is_refused_before_and_at_the_load(tmp_path, name):
    change, sentence = BROKEN[name]
    path = rewrite(tiny_model(tmp_path, vocab=VOCABULARY, hidden=32, tied=False), change)
    with pytest.raises(InputError, match=rf"^student\.model: .*{sentence}"):
        check_weights(path, "student.model")
    with pytest.raises(InputError, match=sentence):
        load_causal_lm(path, torch.float32)
    with pytest.raises(InputError, match=sentence):
        prune_layers(path, [0], str(tmp_path / "pruned"))
    assert not (tmp_path / "pruned").exists()


def test_a_model_that_peft_saved_beside_its_adapter(tmp_path):
    path = tiny_model(tmp_path, vocab=VOCABULARY, hidden=32)
    get_peft_model(
        AutoModelForCausalLM.from_pretrained(path), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    ).save_pretrained(path)
    with pytest.raises(InputError, match=r"^student\.model: .*holds a LoRA adapter beside its weights"):
        check_weights(path, "student.model")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_a_missing_expert(families, tmp_path, name):
    shutil.copytree(families[name], tmp_path / "model")
    path = rewrite(tmp_path / "model", without(r"layers\.1\..*experts\.2\."))
    with pytest.raises(InputError, match=r"^teacher\.model: .*(shape|combine)"):
        check_weights(path, "teacher.model")


def test_a_parameter_under_two_names(families, tmp_path):
    shutil.copytree(families["gpt2"], tmp_path / "model")
    path = rewrite(tmp_path / "model", lambda w: w | {"wte.weight": w["transformer.wte.weight"] + 1})
    with pytest.raises(InputError, match=r"holds transformer\.wte\.weight twice, as transformer\.wte\.weight and wte\.weight"):
        check_weights(path, "teacher.model")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_tied_config_with_a_head_of_its_own_in_the_file(tmp_path, name):
    path = tiny_model(tmp_path, name, vocab=VOCABULARY, hidden=32, tied=True)
    (embedding,) = (key for key in load_file(tmp_path / "model.safetensors") if key.endswith(("embed_tokens.weight", "wte.weight")))
    rewrite(path, lambda w: w | {"lm_head.weight": w[embedding].clone()})
    check_weights(path, "student.model")
    rewrite(path, lambda w: w | {"lm_head.weight": w[embedding] + 1})
    for load in (lambda: check_weights(path, "student.model"), lambda: load_causal_lm(path, torch.float32)):
        with pytest.raises(InputError, match=rf"ties lm_head\.weight to {embedding}, but .* set tie_word_embeddings: false in that config"):
            load()
    edit_config(path, tie_word_embeddings=False)
    check_weights(path, "student.model")
    model = load_causal_lm(path, torch.float32)
    assert torch.equal(model.get_output_embeddings().weight, load_file(tmp_path / "model.safetensors")["lm_head.weight"])
    assert torch.equal(read_head(path, VOCABULARY).weight, model.get_output_embeddings().weight)


def test_a_quantised_teacher_needs_its_head_in_floating_point(tmp_path):
    path = tiny_model(tmp_path, vocab=VOCABULARY, hidden=32, tied=False)
    edit_config(path, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})
    rewrite(path, renamed(r"proj\.weight", "proj.qweight"))
    check_weights(path, "teacher.model")
    rewrite(path, lambda w: w | {"lm_head.weight": torch.zeros(VOCABULARY, 32, dtype=torch.int8)})
    with pytest.raises(InputError, match=r"^teacher\.model: lm_head\.weight .* type I8.* needs \[64, 32\] in floating point"):
        check_weights(path, "teacher.model")


def test_an_incomplete_export_is_not_put_in_place(tmp_path):
    path = tiny_model(tmp_path / "model", vocab=VOCABULARY, hidden=32, tied=False)
    with pytest.raises(RunError, match=r"saved model is not complete: .*1 missing \(model\.norm\.weight\)"):
        save_weights(without(r"^model\.norm")(load_file(tmp_path / "model" / "model.safetensors")), path, str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()
