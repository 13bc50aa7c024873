"""vLLM's Bloom with the activation that Bloom was trained with: vLLM's class has the exact GELU, not its tanh form.

The difference is 0.001 nats of a log-prob in a tiny random model, in float32. The plugin registers this class in place of vLLM's.
"""

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models import bloom


class BloomForCausalLM(bloom.BloomForCausalLM):
    """Bloom with the tanh form of GELU."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        for module in self.modules():
            if isinstance(module, bloom.BloomMLP):
                module.gelu_impl = nn.GELU(approximate="tanh")
