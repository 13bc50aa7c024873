"""Which numbers of tensor-parallel processes vLLM can divide a model into."""

from transformers import PretrainedConfig

from minirl.errors import InputError

VOCABULARY_MULTIPLE = 64  # vLLM pads every vocabulary to a multiple of it (`vocab_parallel_embedding.DEFAULT_VOCAB_PADDING_SIZE`)


def check_tensor_parallel(network: PretrainedConfig, model_key: str, size: int, size_key: str) -> None:
    """Raises InputError, which names both config keys, if vLLM cannot divide the model into `size` parts.

    vLLM finds out when it builds the model in its processes (`ModelConfig.verify_with_parallel_config`, `QKVParallelLinear`,
    `VocabParallelEmbedding`), minutes into a run.
    """
    if (problem := _problem(network, size)) is None:
        return
    possible = [str(other) for other in range(1, network.num_attention_heads + 1) if _problem(network, other) is None]
    raise InputError(f"{size_key} = {size} {problem} of {model_key}; possible values are {', '.join(possible)}")


def _problem(network: PretrainedConfig, size: int) -> str | None:
    heads = getattr(network, "num_attention_heads", None)
    if not isinstance(heads, int):  # a model without attention
        return None
    kv_heads = getattr(network, "num_key_value_heads", None) or heads
    vocabulary = -(-network.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if heads % size:
        return f"does not divide the {heads} attention heads"
    if kv_heads % size and size % kv_heads:  # with more processes than heads, vLLM gives several processes the same head
        return f"neither divides the {kv_heads} key-value heads nor is a multiple of their number"
    if vocabulary % size:
        return f"does not divide the {vocabulary} rows of the output head (the vocabulary, padded to a multiple of {VOCABULARY_MULTIPLE})"
    return None
