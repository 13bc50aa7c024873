"""A pruned student computes what the kept layers of its teacher compute, or is refused in a sentence."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    FalconConfig,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoXConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from minirl.errors import InputError
from minirl.model import pruning
from minirl.model.loading import load_causal_lm
from minirl.model.pruning import prune_layers
from tests.minirl.model.tiny_families import TOKENS, VOCABULARY, logits_of
from tests.tiny import tiny_model

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8, "num_attention_heads": 2}
GROUPED = SMALL | {"num_key_value_heads": 1}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 2}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 8, "n_head": 2}
KEPT = [0, 1, 4, 6, 7]
LONG = torch.randint(3, VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(0))
# family: the config of eight layers, and the entry of its layers 0, 1, 4, 6 and 7 in each list of the config
PER_LAYER = {
    "smollm3": (SmolLM3Config(**GROUPED, **SPECIAL, no_rope_layer_interval=4), {"no_rope_layers": [1, 1, 1, 1, 0]}),
    "gemma2": (Gemma2Config(**GROUPED, **SPECIAL, head_dim=16, sliding_window=6), {"layer_types": "sfssf"}),
    "cohere2": (Cohere2Config(**GROUPED, **SPECIAL, sliding_window=6), {"layer_types": "ssssf"}),
    "qwen2, windows above": (
        Qwen2Config(**GROUPED, **SPECIAL, use_sliding_window=True, sliding_window=6, max_window_layers=4),
        {"layer_types": "ffsss", "max_window_layers": 2},
    ),
    "gpt_neo": (
        GPTNeoConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_layers=8, num_heads=2, attention_types=[[["global", "local"], 4]], window_size=6
        ),
        {"attention_layers": ["global", "local", "global", "global", "local"]},
    ),
    "qwen3_moe, some dense": (
        Qwen3MoeConfig(
            **GROUPED, **SPECIAL, head_dim=16, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[1, 4, 6]
        ),
        {"mlp_only_layers": [1, 2, 3]},
    ),
    "bloom": (BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=8, n_head=2), {}),
    "falcon": (FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=8, num_attention_heads=2), {}),
    "opt, projected": (OPTConfig(**(SMALL | {"ffn_dim": 48}), **SPECIAL, word_embed_proj_dim=16), {}),
    "gpt_neox": (GPTNeoXConfig(**SMALL, **SPECIAL), {}),
}


class PassOn(nn.Module):
    """Stands in place of a layer and returns its input in the form of the layer's output."""

    def __init__(self, returns_tuple: bool):
        super().__init__()
        self.returns_tuple = returns_tuple

    def forward(self, hidden_states, *_, **__):
        return (hidden_states, None) if self.returns_tuple else hidden_states


def random_model(config, directory) -> str:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return str(directory)


@torch.no_grad()
def logits_with_windows(directory: str) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()(LONG, use_cache=False).logits


def blocks_of(model) -> nn.ModuleList:
    return model.transformer.h if isinstance(model, GPT2LMHeadModel) else model.model.layers


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
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (directory / file).read_bytes() == (Path(models["llama tied"]) / file).read_bytes(), file
    assert GenerationConfig.from_pretrained(directory).eos_token_id == [1, 7]
    assert not list(tmp_path.glob("*.partial"))


@torch.no_grad()
@pytest.mark.parametrize("name", PER_LAYER)
def test_settings_of_a_layer_stay_with_it_and_what_it_computes_too(tmp_path, name):
    config, settings = PER_LAYER[name]
    teacher = random_model(config, tmp_path / "teacher")
    student = prune_layers(teacher, KEPT, str(tmp_path / "student"))
    written = json.loads((tmp_path / "student" / "config.json").read_text())
    for key, value in settings.items():
        assert (written[key] if not isinstance(value, str) else "".join(kind[0] for kind in written[key])) == value
    assert written.get("sliding_window") == getattr(config, "sliding_window", None)  # not the small window of the comparison

    model = AutoModelForCausalLM.from_pretrained(teacher, attn_implementation="eager").eval()
    (blocks,) = (m for n, m in model.base_model.named_modules() if isinstance(m, nn.ModuleList) and n.rsplit(".")[-1] in ("layers", "h"))
    for index in set(range(8)) - set(KEPT):
        blocks[index] = PassOn(returns_tuple=name in ("bloom", "falcon", "gpt_neo"))
    torch.testing.assert_close(logits_with_windows(student), model(LONG, use_cache=False).logits)
    assert not torch.allclose(logits_with_windows(student), logits_with_windows(teacher), atol=1e-2)


def test_what_a_config_cannot_state_is_refused(tmp_path):
    teacher = random_model(GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True), tmp_path / "teacher")
    with pytest.raises(InputError, match=r"student\.layers: .* layers \[0, 1, 4, 6, 7\] alone.* keep the first 5 layers"):
        prune_layers(teacher, KEPT, str(tmp_path / "student"))
    assert not (tmp_path / "student").exists()
    assert prune_layers(teacher, [0, 1, 2], str(tmp_path / "student")) == str(tmp_path / "student")


@pytest.mark.parametrize("name", [name for name, (_, settings) in PER_LAYER.items() if settings])
def test_a_setting_that_pruning_does_not_know_is_noticed(tmp_path, monkeypatch, name):
    def keep_lists(config, layers):
        changed = copy.deepcopy(config)
        for key in PER_LAYER[name][1]:
            value = getattr(config, key)
            setattr(changed, key, value[: len(layers)] if isinstance(value, list) and len(value) == 8 else value)
        if name == "gpt_neo":
            changed.attention_types = [[[kind], 1] for kind in changed.attention_layers]
        changed.num_hidden_layers = len(layers)
        return changed

    monkeypatch.setattr(pruning, "_with_layers", keep_lists)
    with pytest.raises(InputError, match=r"student\.layers: a config of this family cannot state layers"):
        prune_layers(random_model(PER_LAYER[name][0], tmp_path / "teacher"), KEPT, str(tmp_path / "student"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pruned_student_keeps_the_dtype(tmp_path, dtype):
    AutoModelForCausalLM.from_config(GPT2Config(**GPT2), dtype=dtype).save_pretrained(tmp_path / "teacher")
    prune_layers(str(tmp_path / "teacher"), KEPT, str(tmp_path / "student"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype="auto").dtype == dtype


@pytest.mark.parametrize("settings", [{"temperature": 0.9, "top_p": 0.6}, {"max_new_tokens": 0}, {"early_stopping": "often"}])
def test_generation_settings_that_transformers_refuses_are_not_fatal(tmp_path, settings):
    teacher = tiny_model(tmp_path / "teacher", vocab=VOCABULARY, hidden=32)
    (tmp_path / "teacher" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]} | settings))
    student = prune_layers(teacher, [0], str(tmp_path / "student"))
    model = AutoModelForCausalLM.from_pretrained(student)
    assert model.generation_config.eos_token_id == [1, 7]
    model.save_pretrained(tmp_path / "again")
    load_causal_lm(teacher, torch.float32)


@pytest.mark.parametrize("layers", [[], [0, 5], [-1, 0], [2, 1], [1, 1]])
def test_layers_that_the_teacher_does_not_have(models, tmp_path, layers):
    with pytest.raises(InputError, match="some of the teacher's 5 layers, 0 to 4, each once and in order"):
        prune_layers(models["llama tied"], layers, str(tmp_path / "student"))
    assert not list(tmp_path.iterdir())


def test_weights_that_give_no_finite_numbers_are_not_blamed_on_the_layers(models, tmp_path):
    teacher = Path(shutil.copytree(models["llama tied"], tmp_path / "teacher"))
    weights = load_file(teacher / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"][:] = float("nan")
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="student.layers: the weights in .*teacher give numbers that are not finite; download or copy"):
        prune_layers(str(teacher), [0], str(tmp_path / "student"))
