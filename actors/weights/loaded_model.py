"""What a loaded vLLM model of any family has: the student, the output head, its width, and vLLM's names of tensors.

vLLM's classes differ. Most have a head `lm_head`, tied to the embedding or not; in Gemma 2 and Cohere the embedding itself makes the
logits. Classes on vLLM's transformers backend (GPT-NeoX, OLMo 2) rename all tensors. The head of OPT-350M is narrower than its layers.
"""

import torch
from torch import nn
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info


def student_of(model: nn.Module) -> nn.Module:
    """The network that the learner trains: the student inside a mixture, else the model itself."""
    return getattr(model, "student", model)


def output_head(network: nn.Module) -> VocabParallelEmbedding:
    """The module whose weight makes the logits: the output head, or the embedding where the class uses that one."""
    tables = [module for module in network.modules() if isinstance(module, VocabParallelEmbedding)]
    heads = [module for module in tables if isinstance(module, ParallelLMHead)]
    return (heads or tables)[-1]


def head_width(network: nn.Module) -> int:
    """Elements of the final hidden state, which is the head's input."""
    return output_head(network).embedding_dim


def engine_name(network: nn.Module, name: str) -> str:
    """vLLM's name of the tensor that has this name in a Hugging Face file; the same name where the class does not keep the tensor."""
    mapper = getattr(network, "hf_to_vllm_mapper", None)
    return name if mapper is None else mapper.map_name(name) or name


def has_tied_head(network: nn.Module) -> bool:
    """Whether head and embedding are two modules with one weight. Ask before an update starts: during one, they have a weight each."""
    head = output_head(network)
    tables = (module for module in network.modules() if isinstance(module, VocabParallelEmbedding))
    return any(table is not head and table.weight is head.weight for table in tables)


def incomplete_layers(network: nn.Module, tied_head: bool) -> list[str]:
    """Names of the layers that have not received all their weights in the current update. vLLM would leave their old values in place."""
    head = output_head(network)
    return [name for name, layer in network.named_modules() if not (tied_head and layer is head) and _is_incomplete(layer)]


def _is_incomplete(layer: nn.Module) -> bool:
    loading = get_layerwise_info(layer)
    if not loading.can_load() or is_deferred_attention_layer(layer) or not any(p is not None for p in layer._parameters.values()):
        return False
    # The rows that pad a vocabulary are never sent.
    return loading.load_numel <= 0 if isinstance(layer, VocabParallelEmbedding) else loading.load_numel < loading.load_numel_total


def head_rows(head: VocabParallelEmbedding, columns: torch.Tensor) -> torch.Tensor:
    """The head's own outputs for one-hot inputs, float32 [n, rows]: row r of output i is the element (r, columns[i]) of its weight."""
    probes = torch.zeros(len(columns), head.embedding_dim, dtype=head.weight.dtype, device=head.weight.device)
    probes[torch.arange(len(columns)), columns] = 1
    return head.quant_method.apply(head, probes).cpu().float()
