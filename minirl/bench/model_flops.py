"""The floating-point operations (FLOPs) that a role's work needs, by formula: the numerator of its MFU.

The forward pass of a model is

    2 x layers x tokens  +  4 x attention x pairs  +  2 x head x logits

with `layers` the parameters of all matrices but the embeddings and the head, `attention` the layers x query heads x elements of a head,
`pairs` the pairs of a token and one that it attends to (itself included), `head` the elements of the output head and `logits` the tokens
whose logits are computed. A product of [n, d] and [d, m] counts 2 n d m. Norms, softmax, activations and rotations count nothing, and a
sliding window counts as full causal attention. A backward pass counts twice its forward pass. Recomputation counts nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from minirl.model.weight_files import skeleton_of


@dataclass(frozen=True)
class ModelSize:
    """The three sizes of the formula. layers: of a mixture of experts, only the experts that a token uses."""

    layers: int
    attention: int
    head: int

    def forward(self, tokens: int, pairs: int, logits: float) -> float:
        return 2.0 * self.layers * tokens + 4.0 * self.attention * pairs + 2.0 * self.head * logits


def read_size(model: str) -> ModelSize:
    """The size of the model in a directory. Reads its config only."""
    return size_of(skeleton_of(AutoConfig.from_pretrained(model)))


def size_of(model: PreTrainedModel) -> ModelSize:
    config, head = model.config, model.get_output_embeddings()
    # A weight that is tied to the head belongs to a module of embeddings too, so modules are excluded, not parameters.
    matrices = [
        matrix
        for module in model.modules()
        if module is not head and not isinstance(module, nn.Embedding) and "Norm" not in type(module).__name__
        for matrix in module.parameters(recurse=False)
        if matrix.ndim > 1
    ]
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSize(
        layers=round(sum(matrix.numel() * _used_share(matrix, config) for matrix in matrices)),
        attention=config.num_hidden_layers * config.num_attention_heads * head_size,
        head=head.weight.numel(),
    )


def _used_share(matrix: nn.Parameter, config: PretrainedConfig) -> float:
    """The share of a matrix that one token is multiplied with: below 1 only for the joined matrices of all experts [experts, n, m]."""
    used = getattr(config, "num_experts_per_tok", None)
    return used / matrix.shape[0] if used and matrix.ndim == 3 else 1.0


def causal_pairs(length: int) -> int:
    """Pairs of a token and one that it attends to in a sequence."""
    return length * (length + 1) // 2


def sampling_flops(models: Sequence[ModelSize], rollouts: Iterable[tuple[int, int, int]]) -> float:
    """Of sampling with a key-value cache. models: the networks that compute each token; rollouts: (prompt index, prompt, response) tokens.

    The samples of one prompt share its computation. The last token of a response is not computed.
    """
    total, seen = 0.0, set()
    for index, prompt, response in rollouts:
        cached = prompt if index in seen else 0
        seen.add(index)
        last = prompt + response - 1
        pairs = causal_pairs(last) - causal_pairs(cached)
        total += sum(model.forward(last - cached, pairs, response) for model in models)
    return total


def scoring_flops(teacher: ModelSize, sequences: Iterable[tuple[int, int]], check_every: int) -> float:
    """Of scoring. sequences: (tokens, targets); the teacher's engine applies its head to one target in `check_every`."""
    return sum(teacher.forward(tokens, causal_pairs(tokens), targets / check_every) for tokens, targets in sequences)


def update_flops(student: ModelSize, teacher_heads: int, sequences: Iterable[tuple[int, int]], *, frozen: bool) -> float:
    """Of forward and backward passes, and of the teacher's logits. sequences: (tokens, targets). teacher_heads: elements of its head(s).

    frozen: LoRA, where the matrices get no gradient, so that the backward pass of a matrix counts as often as its forward pass. The
    adapters themselves count nothing.
    """
    passes, total = (2.0 if frozen else 3.0), 0.0
    for tokens, targets in sequences:
        total += passes * student.forward(tokens, 0, targets) + 3.0 * student.forward(0, causal_pairs(tokens), 0)
        total += 2.0 * teacher_heads * targets
    return total
