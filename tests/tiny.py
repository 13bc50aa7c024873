"""Tiny random models with a tokenizer, saved as Hugging Face directories, for every test that needs a real model.

The words of the tokenizer are "t3" ... "t{V-1}", each with the id of its number; ids 0 to 2 are unknown, end of text and padding.
`AutoTokenizer` reads it for llama and gpt2. For qwen2, transformers 5 insists on a byte-pair tokenizer, so use qwen2 with token ids only.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

END_TOKEN, PAD_TOKEN = 1, 2
SPECIAL = {0: "<unk>", END_TOKEN: "<end>", PAD_TOKEN: "<pad>"}
CHAT_TEMPLATE = (
    "{% set names = {'system': 't3 ', 'user': 't4 ', 'assistant': 't5 '} %}{% for message in messages %}{{ names[message['role']] }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + ' ' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 't5 ' }}{% endif %}"
)


def tiny_tokenizer(directory: str | Path, vocab: int) -> str:
    """Saves a whitespace tokenizer of `vocab` words with an end token, a padding token and a chat template."""
    words = {SPECIAL.get(i, f"t{i}"): i for i in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[0],
        eos_token=SPECIAL[END_TOKEN],
        pad_token=SPECIAL[PAD_TOKEN],
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(str(directory))
    return str(directory)


def tiny_model(
    directory: str | Path,
    family: str = "llama",
    *,
    vocab: int = 512,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    seed: int = 0,
    tied: bool = True,
    max_positions: int = 512,
    tokenizer_vocab: int | None = None,
) -> str:
    """Saves a random model of `family` (llama, gpt2, qwen2) and its tokenizer; returns the directory.

    `tokenizer_vocab` below `vocab` makes a padded vocabulary, as Qwen's are. Biases and norms are random too, so that a test notices a
    forgotten one. Logits spread with a standard deviation near 1.5, so that distributions are far from uniform.
    vLLM's CPU attention needs a head size (hidden / heads) of 32, 64, 80, 96, 112, 128 or more.
    """
    config = _config(family, vocab, hidden, layers, heads, tied, max_positions)
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        mean = parameter.detach().mean().round()  # 1 for the weights of norms, else 0
        parameter.data = mean + noise * (0.1 if parameter.ndim == 1 else hidden**-0.5)
    if not tied:
        nn.init.normal_(model.get_output_embeddings().weight, std=hidden**-0.5, generator=generator)
    model.get_output_embeddings().weight.data *= 1.5
    model.save_pretrained(str(directory))
    return tiny_tokenizer(directory, tokenizer_vocab or vocab)


def _config(family: str, vocab: int, hidden: int, layers: int, heads: int, tied: bool, max_positions: int):
    special = {"bos_token_id": END_TOKEN, "eos_token_id": END_TOKEN, "pad_token_id": PAD_TOKEN, "tie_word_embeddings": tied}
    if family == "gpt2":
        return GPT2Config(vocab_size=vocab, n_embd=hidden, n_layer=layers, n_head=heads, n_positions=max_positions, **special)
    configs = {"llama": LlamaConfig, "qwen2": Qwen2Config}
    return configs[family](
        vocab_size=vocab, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1), max_position_embeddings=max_positions, **special,
    )  # fmt: skip
