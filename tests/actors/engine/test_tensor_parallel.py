"""Which tensor-parallel sizes vLLM can divide a model into."""

import pytest
from transformers import FalconConfig, GPT2Config, LlamaConfig, MambaConfig

from actors.engine.tensor_parallel import check_tensor_parallel
from minirl.errors import InputError


def llama(heads: int, kv_heads: int, vocabulary: int = 49152) -> LlamaConfig:
    return LlamaConfig(num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=vocabulary, hidden_size=64 * heads)


def accepted(network) -> list[int]:
    def fits(size: int) -> bool:
        try:
            check_tensor_parallel(network, "teacher.model", size, "rollout.tensor_parallel")
        except InputError:
            return False
        return True

    return [size for size in range(1, 65) if fits(size)]


def test_sizes_that_divide_heads_key_value_heads_and_vocabulary():
    assert accepted(llama(9, 3)) == [1, 3]  # SmolLM2-135M; 9 processes could share 3 key-value heads, but not the vocabulary
    assert accepted(llama(32, 8, 128256)) == [1, 2, 4, 8, 16, 32]  # Llama 3 8B: from 16 on, key-value heads are repeated
    assert accepted(llama(12, 4, 12 * 64)) == [1, 2, 4, 12]  # 3 and 6 divide the heads, and neither divides 4 nor is a multiple of it
    assert accepted(GPT2Config(n_head=12)) == [1, 2, 3, 4, 6, 12]  # 50,257 rows become 50,304
    assert accepted(GPT2Config(n_head=10)) == [1, 2]  # 5 does not divide 50,304
    assert accepted(FalconConfig(num_attention_heads=4)) == [1, 2, 4]  # one key-value head, which its config does not name
    assert len(accepted(MambaConfig())) == 64


@pytest.mark.parametrize(
    ("network", "size", "sentence"),
    [
        (llama(9, 3), 2, "rollout.tensor_parallel = 2 does not divide the 9 attention heads of teacher.model; possible values are 1, 3"),
        (llama(12, 4, 768), 3, "rollout.tensor_parallel = 3 neither divides the 4 key-value heads nor is a multiple of their number"),
        (llama(9, 3), 9, "rollout.tensor_parallel = 9 does not divide the 49152 rows of the output head"),
    ],
)
def test_the_sentence_names_the_key_the_heads_and_the_possible_values(network, size, sentence):
    with pytest.raises(InputError) as caught:
        check_tensor_parallel(network, "teacher.model", size, "rollout.tensor_parallel")
    message = str(caught.value)
    assert message.startswith(sentence) and "of teacher.model; possible values are" in message and "\n" not in message


@pytest.mark.slow
def test_vllm_pads_as_we_say():
    """The multiple to which it pads a vocabulary."""
    from vllm.model_executor.layers.vocab_parallel_embedding import DEFAULT_VOCAB_PADDING_SIZE

    from actors.engine.tensor_parallel import VOCABULARY_MULTIPLE

    assert DEFAULT_VOCAB_PADDING_SIZE == VOCABULARY_MULTIPLE
