"""Tiny random models of every family in docs/models.md, with what is special about the family switched on.

"Special": sliding windows shorter than the sequences, soft-caps, scales of logits and embeddings, projected embeddings, layers without
positions. A family that ignored one of them would then give other log-probs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from tests.tiny import END_TOKEN, PAD_TOKEN, tiny_tokenizer

VOCABULARY, POSITIONS, WINDOW = 512, 512, 32
HEAD = 32  # vLLM's CPU attention takes 32, 64, 80, 96, 112, 128 and more
STUDENT, TEACHER = (2, 2), (4, 3)  # heads and layers; the caches of their keys and values differ in size


@dataclass(frozen=True)
class Family:
    """title: as in the table. build: heads and layers -> config. student: whether the family may be trained."""

    title: str
    build: Callable[[int, int], PretrainedConfig]
    student: bool = True


def _config(name: str, heads: int, layers: int, **special) -> PretrainedConfig:
    """A config with the names that most families share; `special` replaces or adds."""
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": HEAD * heads, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 3 * HEAD * heads, "max_position_embeddings": POSITIONS,
        "bos_token_id": END_TOKEN, "eos_token_id": END_TOKEN, "pad_token_id": PAD_TOKEN,
    }  # fmt: skip
    return getattr(transformers, f"{name}Config")(**shape | special)


def _grouped(name: str, **special) -> Callable[[int, int], PretrainedConfig]:
    """A family with grouped-query attention: one head of keys and values for two of queries."""
    return lambda heads, layers: _config(name, heads, layers, num_key_value_heads=heads // 2, **special)


def _plain(name: str, **special) -> Callable[[int, int], PretrainedConfig]:
    return lambda heads, layers: _config(name, heads, layers, **special)


def _windowed(name: str, **special) -> Callable[[int, int], PretrainedConfig]:
    """A family whose layers alternate between a sliding window and full attention."""

    def build(heads: int, layers: int) -> PretrainedConfig:
        types = [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
        return _config(
            name, heads, layers, num_key_value_heads=heads // 2, head_dim=HEAD, sliding_window=WINDOW, layer_types=types,
            query_pre_attn_scalar=48, **special,
        )  # fmt: skip

    return build


def _gpt2(heads: int, layers: int) -> PretrainedConfig:
    return _config("GPT2", heads, layers, n_embd=HEAD * heads, n_layer=layers, n_head=heads, n_positions=POSITIONS)


def _gptj(heads: int, layers: int) -> PretrainedConfig:
    return _config(
        "GPTJ", heads, layers, n_embd=HEAD * heads, n_layer=layers, n_head=heads, n_positions=POSITIONS, rotary_dim=16,
        tie_word_embeddings=False,
    )  # fmt: skip


def _opt(heads: int, layers: int, **special) -> PretrainedConfig:
    return _config("OPT", heads, layers, ffn_dim=3 * HEAD * heads, dropout=0.0, **special)


def _opt_projected(heads: int, layers: int) -> PretrainedConfig:
    """OPT 350M: narrow embeddings, projected to the layers' width and back; norms after the layers and none at the end."""
    return _opt(heads, layers, word_embed_proj_dim=HEAD * heads // 2, do_layer_norm_before=False)


def _bloom(heads: int, layers: int) -> PretrainedConfig:
    return _config("Bloom", heads, layers, n_layer=layers, n_head=heads)


def _falcon(heads: int, layers: int) -> PretrainedConfig:
    return _config("Falcon", heads, layers, multi_query=True, parallel_attn=True, new_decoder_architecture=False, alibi=False, bias=False)


def _smollm3(heads: int, layers: int) -> PretrainedConfig:
    return _config("SmolLM3", heads, layers, num_key_value_heads=heads // 2, no_rope_layers=[i % 2 for i in range(layers)])


FAMILIES = {
    "gpt2": Family("GPT-2", _gpt2),
    "opt": Family("OPT", _opt),
    "opt_projected": Family("OPT with projected embeddings (350M)", _opt_projected),
    "gpt_neox": Family("GPT-NeoX, Pythia", _plain("GPTNeoX", rotary_pct=0.5, tie_word_embeddings=False)),
    "gptj": Family("GPT-J", _gptj),
    "bloom": Family("Bloom", _bloom),
    "falcon": Family("Falcon", _falcon),
    "phi": Family("Phi 1, 2", _plain("Phi", partial_rotary_factor=0.5, tie_word_embeddings=False)),
    "phi3": Family("Phi-3, Phi-4", _grouped("Phi3", sliding_window=WINDOW, tie_word_embeddings=False)),
    "llama": Family("Llama 2, 3", _grouped("Llama", tie_word_embeddings=True)),
    "mistral": Family("Mistral", _grouped("Mistral", sliding_window=WINDOW, tie_word_embeddings=False)),
    "qwen2": Family("Qwen2, Qwen2.5", _grouped("Qwen2", tie_word_embeddings=True)),
    "qwen3": Family("Qwen3", _grouped("Qwen3", head_dim=HEAD, tie_word_embeddings=True)),
    "gemma": Family("Gemma 1", _grouped("Gemma", head_dim=HEAD)),
    "gemma2": Family("Gemma 2", _windowed("Gemma2", attn_logit_softcapping=5.0, final_logit_softcapping=6.0)),
    "gemma3": Family("Gemma 3 (text)", _windowed("Gemma3Text")),
    "cohere": Family("Cohere (Command R)", _grouped("Cohere", logit_scale=0.5, use_qk_norm=True)),
    "granite": Family(
        "Granite",
        _grouped(
            "Granite",
            logits_scaling=2.0,
            embedding_multiplier=3.0,
            residual_multiplier=0.5,
            attention_multiplier=0.1,
            tie_word_embeddings=True,
        ),
    ),
    "olmo2": Family("OLMo 2", _grouped("Olmo2", tie_word_embeddings=False)),
    "stablelm": Family("StableLM", _grouped("StableLm", partial_rotary_factor=0.5, use_qkv_bias=True, tie_word_embeddings=False)),
    "smollm3": Family("SmolLM3", _smollm3),
    "mixtral": Family("Mixtral", _grouped("Mixtral", num_local_experts=4, tie_word_embeddings=False), student=False),
    "qwen3_moe": Family(
        "Qwen3-MoE",
        _grouped("Qwen3Moe", head_dim=HEAD, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, tie_word_embeddings=False),
        student=False,
    ),
}


def family_model(directory: str | Path, family: str, shape: tuple[int, int] = STUDENT, seed: int = 0, vocabulary: int = VOCABULARY) -> str:
    """Saves a random model of the family and the tokenizer of `tests.tiny`; returns the directory. shape: heads and layers."""
    config = FAMILIES[family].build(*shape)
    config.vocab_size = vocabulary
    generator, width = torch.Generator().manual_seed(seed), HEAD * shape[0]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        mean = parameter.detach().mean().round()  # 1 for the weights of most norms, else 0
        parameter.data = mean + noise * (0.1 if parameter.ndim == 1 else width**-0.5)
    model.get_output_embeddings().weight.data *= 1.5
    model.save_pretrained(str(directory))
    return tiny_tokenizer(directory, vocabulary)
