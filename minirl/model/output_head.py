"""OutputHead: hidden states to logits by weight, bias, scale and soft-cap; its reading from files, and its check."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from minirl.errors import InputError
from minirl.model.matmul import matmul_into, multiplies_natively
from minirl.model.weight_accounting import check_readable_head
from minirl.model.weight_files import head_sources, skeleton_of, stored_tensors


@dataclass(frozen=True)
class OutputHead:
    """hidden [N, d] -> logits [N, vocabulary] in float32: soft_cap tanh((h @ weight.T + bias) * scale / soft_cap) / temperature.

    weight: [rows, d] with at least `vocabulary` rows; bias: [rows] or None; soft_cap: None for no cap.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    soft_cap: float | None
    vocabulary: int

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        return self._finish(nn.functional.linear(hidden.float(), self.weight[: self.vocabulary].float()), temperature)

    def logits_into(self, out: Tensor, hidden: Tensor, temperature: float = 1.0) -> None:
        """Write the logits into `out` [N, vocabulary], in its dtype (float32 or wider), without gradient."""
        matmul_into(out, hidden, self.weight[: self.vocabulary])
        self._finish(out, temperature)

    def _finish(self, logits: Tensor, temperature: float) -> Tensor:
        """Apply bias, scale, soft-cap and temperature in place; skips each pass over [tokens, vocabulary] that would change nothing."""
        if self.bias is not None:
            logits += self.bias[: self.vocabulary]
        if self.soft_cap is not None:
            logits.mul_(self.scale / self.soft_cap).tanh_().mul_(self.soft_cap / temperature)
        elif self.scale != temperature:
            logits *= self.scale / temperature
        return logits

    def prepared_for(self, device: torch.device | str) -> "OutputHead":
        """A copy of the head for many products on this device; its weight is widened here once if products there need a wide weight."""
        weight = self.weight.to(device)
        if not multiplies_natively(weight):
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return replace(self, weight=weight, bias=None if self.bias is None else self.bias.to(device))


def head_scale(config: PretrainedConfig) -> float:
    """The factor by which the model family multiplies its logits (Cohere: logit_scale; Granite divides by logits_scaling)."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


def head_soft_cap(config: PretrainedConfig) -> float | None:
    return getattr(config, "final_logit_softcapping", None)


def student_head(model: PreTrainedModel, vocabulary: int) -> OutputHead:
    """The output head of the model; it shares the model's parameters."""
    linear = model.get_output_embeddings()
    return OutputHead(linear.weight, getattr(linear, "bias", None), head_scale(model.config), head_soft_cap(model.config), vocabulary)


def read_head(path: str, vocabulary: int) -> OutputHead:
    """The output head of a model directory, without loading the rest of the model. Raises InputError if the weights hold no head."""
    config = AutoConfig.from_pretrained(path)
    skeleton, tensors = skeleton_of(config), stored_tensors(path)
    check_readable_head(skeleton, tensors, path, "the teacher")
    parts = {attribute: tensors[name].read() for attribute, name in head_sources(skeleton, list(tensors)).items()}
    return OutputHead(parts["weight"], parts.get("bias"), head_scale(config), head_soft_cap(config), vocabulary)


@torch.no_grad()
def check_head(model: PreTrainedModel, key: str) -> None:
    """Check that `OutputHead` rebuilds the model's logits from hidden states. Raises InputError for a family that does more to them.

    It runs where the model is.
    """
    tokens = torch.tensor([[1, 2, 3, 4]]).to(model.device)
    was_training = model.training
    model.eval()  # under dropout, two passes differ for every family
    expected = model(tokens).logits.float()
    rebuilt = student_head(model, expected.shape[-1]).logits(model.base_model(tokens).last_hidden_state)
    model.train(was_training)
    if not torch.allclose(rebuilt, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max())):
        raise InputError(
            f"{key}: {type(model).__name__} does more to its logits than a head, a scale and a soft-cap; name a model of another family"
        )
