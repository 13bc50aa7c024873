"""FLOPs of a model, counted by hand and by torch's own counter."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedModel

from minirl.bench.model_flops import ModelSize, causal_pairs, read_size, sampling_flops, scoring_flops, size_of, update_flops
from minirl.model.weight_files import skeleton_of
from tests.families.models import FAMILIES
from tests.tiny import tiny_model

LENGTH, SEQUENCES = 24, 2
ROTATIONS = 1e-3  # torch's counter sees a product in the rotary angles, of one multiplication for each token and frequency


def test_gpt2_by_hand():
    """Width 8, 3 layers, 2 heads: joined queries, keys and values 8 x 24, output 8 x 8, two feed-forward matrices 8 x 32."""
    config = GPT2Config(vocab_size=50, n_embd=8, n_layer=3, n_head=2, n_positions=16)
    size = size_of(skeleton_of(config))
    assert size == ModelSize(layers=3 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8), attention=3 * 2 * 4, head=8 * 50)
    # two sequences of 5 and 3 tokens, and the logits of 4 tokens
    assert size.forward(8, 15 + 6, 4) == 2 * 2304 * 8 + 4 * 24 * 21 + 2 * 400 * 4


def test_llama_by_hand():
    """Width 8, 2 layers, 4 heads of 6 elements with one head of keys and values for two: 8 x 24, twice 8 x 12, 24 x 8, three 8 x 10."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=10, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
        tie_word_embeddings=True,
    )  # fmt: skip
    assert size_of(skeleton_of(config)) == ModelSize(2 * (8 * 24 + 2 * 8 * 12 + 24 * 8 + 3 * 8 * 10), attention=2 * 4 * 6, head=400)


def test_the_work_of_the_roles_by_hand():
    size, teacher = ModelSize(layers=100, attention=10, head=1000), ModelSize(layers=300, attention=20, head=2000)
    assert [causal_pairs(n) for n in (1, 2, 5)] == [1, 3, 15]
    # The prompt 7 has 4 tokens, its samples 3 and 2: first 6 tokens are computed, then only the one behind the prompt.
    first, second = 2 * 100 * 6 + 4 * 10 * 21 + 2 * 1000 * 3, 2 * 100 * 1 + 4 * 10 * 5 + 2 * 1000 * 2
    assert sampling_flops([size], [(7, 4, 3), (7, 4, 2)]) == first + second
    both = first + 2 * 300 * 6 + 4 * 20 * 21 + 2 * 2000 * 3
    assert sampling_flops([size, teacher], [(7, 4, 3)]) == both
    assert scoring_flops(teacher, [(6, 4)], check_every=8) == 2 * 300 * 6 + 4 * 20 * 21 + 2 * 2000 * 0.5
    forward, teacher_head = 2 * 100 * 6 + 4 * 10 * 21 + 2 * 1000 * 4, 2 * 2000 * 4
    assert update_flops(size, 2000, [(6, 4)], frozen=False) == 3 * forward + teacher_head
    assert update_flops(size, 0, [(6, 4)], frozen=True) == 2 * (2 * 100 * 6 + 2 * 1000 * 4) + 3 * 4 * 10 * 21


def eager(config: PretrainedConfig) -> PreTrainedModel:
    """A model whose attention multiplies whole matrices, so that torch's counter sees every product."""
    config._experts_implementation = "eager"
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)


def small_llama() -> PreTrainedModel:
    return eager(LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4))


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_of_every_family_as_torch_counts_it(family):
    """Eager attention computes all pairs of a sequence, also those behind the causal mask."""
    model = eager(FAMILIES[family].build(2, 2))
    tokens = torch.zeros(SEQUENCES, LENGTH, dtype=torch.long)
    expected = counted(lambda: model(tokens, use_cache=False))
    assert size_of(model).forward(tokens.numel(), SEQUENCES * LENGTH**2, tokens.numel()) == pytest.approx(expected, rel=ROTATIONS)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_passes_of_an_update_as_torch_counts_them(frozen):
    """A frozen model whose embedding alone has a gradient: the gradient still goes through all layers, as it does with adapters."""
    model = small_llama()
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen)
    model.get_input_embeddings().weight.requires_grad_(True)
    tokens = torch.zeros(1, LENGTH, dtype=torch.long)
    expected = counted(lambda: model(tokens, use_cache=False).logits.sum().backward())
    by_formula = update_flops(size_of(model), 0, [(LENGTH, LENGTH)], frozen=frozen)
    masked = 3.0 * size_of(model).forward(0, LENGTH**2 - causal_pairs(LENGTH), 0)  # computed by eager attention, and not needed
    assert by_formula + masked == pytest.approx(expected, rel=ROTATIONS)


def test_sampling_with_a_cache_as_torch_counts_it():
    """Token by token, attention computes exactly the causal pairs."""
    prompt, response = 5, 7
    model = small_llama()

    def generate() -> None:
        cache = None
        for position in range(prompt + response - 1):
            network = model if position >= prompt - 1 else model.model
            cache = network(torch.tensor([[position]]), past_key_values=cache, use_cache=True).past_key_values

    with torch.no_grad():
        expected = counted(generate)
    assert sampling_flops([size_of(model)], [(0, prompt, response)]) == pytest.approx(expected, rel=ROTATIONS)


def test_the_size_of_a_model_directory(tmp_path):
    directory = tiny_model(tmp_path, vocab=512, hidden=64, layers=2, heads=2)
    assert read_size(directory) == ModelSize(2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192), attention=2 * 64, head=512 * 64)
