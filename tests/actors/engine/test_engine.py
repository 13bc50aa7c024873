"""What an engine refuses before it starts."""

import pytest
from transformers import GPTNeoConfig, LlamaConfig

from actors.engine.engine import CPU_HEAD_SIZES, check_engine_class, check_head_size
from minirl.errors import InputError


def test_a_family_that_vllm_has_no_class_for_is_refused():
    check_engine_class(LlamaConfig(architectures=["LlamaForCausalLM"]), "teacher.model")
    check_engine_class(LlamaConfig(architectures=["Olmo2ForCausalLM"]), "teacher.model")  # on vLLM's transformers backend
    with pytest.raises(InputError, match="^student.model: vLLM has no model class for GPTNeoForCausalLM"):
        check_engine_class(GPTNeoConfig(architectures=["GPTNeoForCausalLM"]), "student.model")


def test_a_head_size_that_vllm_cannot_run_on_a_cpu_is_refused(tmp_path):
    LlamaConfig(hidden_size=288, num_attention_heads=6).save_pretrained(tmp_path)
    check_head_size(str(tmp_path), "cuda")
    with pytest.raises(InputError, match="heads of the model .* have 48 elements"):
        check_head_size(str(tmp_path), "cpu")


@pytest.mark.slow
def test_the_head_sizes_are_those_of_vllm():
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()
