"""The student's weights out of a model that DeepSpeed may have sharded over the ranks: whole, merged, under their Hugging Face names."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import deepspeed
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minirl.config.student import LoraConfig
from minirl.model.loading import save_weights
from minirl.model.lora import adapter_tensors, save_adapter, student_weights

Named = list[tuple[str, Tensor]]


def weight_shapes(model: PreTrainedModel) -> list[tuple[str, tuple[int, ...]]]:
    """Name and whole shape of each weight, in the order of `merged_weights`."""
    return [(weight.name, tuple(getattr(weight.tensor, "ds_shape", weight.tensor.shape))) for weight in student_weights(model)]


def merged_weights(model: PreTrainedModel, bucket_bytes: int, *, sharded: bool) -> Iterator[Named]:
    """Bucket by bucket, on every rank, collective; a bucket's tensors are only valid until the next is asked for.

    Tied weights are in one bucket. With adapters a weight is in float32, a new tensor; else it is the model's own.
    """
    weights = student_weights(model)
    while weights:
        bucket, size = [], 0
        while weights and (not bucket or size + _bytes(weights[0].tensor) <= bucket_bytes or weights[0].tensor is bucket[-1].tensor):
            size += _bytes(weights[0].tensor)
            bucket.append(weights.pop(0))
        with _whole([part for weight in bucket for part in weight.tensors_to_gather], sharded):
            yield [(weight.name, weight.merged()) for weight in bucket]


def export(
    model: PreTrainedModel, lora: LoraConfig | None, source: str, directory: str, *, bucket_bytes: int, sharded: bool, writes: bool
) -> None:
    """Write the student as a Hugging Face directory in its own dtype; config and tokenizer from `source`. Collective; one rank `writes`.

    With adapters that is the merged model, and `adapter/` inside it holds them alone, as they lie on the model `source`.
    """
    weights: dict[str, Tensor] = {}
    for named in merged_weights(model, bucket_bytes, sharded=sharded):
        weights |= _copies(named, model.dtype) if writes else {}
    adapters = list(adapter_tensors(model))
    with _whole([tensor for _, tensor in adapters], sharded):
        copied = _copies(adapters, model.dtype) if writes else {}

    def save_beside(staging: Path) -> None:
        if lora is not None:
            save_adapter(copied, lora, source, staging / "adapter")

    if writes:
        save_weights(weights, source, directory, write_extra=save_beside)


def _whole(parameters: list[Tensor], sharded: bool) -> AbstractContextManager:
    """While it lasts, sharded parameters are whole; collective."""
    return deepspeed.zero.GatheredParameters(list({id(p): p for p in parameters}.values())) if sharded else nullcontext()


def _copies(named: Named, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.detach().to(dtype).cpu().clone() for name, tensor in named}


def _bytes(parameter: Tensor) -> int:
    return getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
