"""Gather the student's weights from a model that DeepSpeed may have sharded: full tensors, LoRA merged.

The weights have their Hugging Face names.
"""

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

NamedTensors = list[tuple[str, Tensor]]


def weight_shapes(model: PreTrainedModel) -> list[tuple[str, tuple[int, ...]]]:
    """Name and full shape of each weight, in the order of `merged_weights`."""
    return [(weight.name, tuple(getattr(weight.tensor, "ds_shape", weight.tensor.shape))) for weight in student_weights(model)]


def merged_weights(model: PreTrainedModel, bucket_bytes: int, *, sharded: bool) -> Iterator[NamedTensors]:
    """Yields the weights in buckets, on every rank. Collective. A bucket's tensors are valid only until the next bucket is requested.

    A tied weight comes once. A weight with an adapter is a new float32 tensor; any other weight is the model's own tensor.
    """
    weights = student_weights(model)
    while weights:
        bucket, size = [], 0
        while weights and (not bucket or size + _bytes(weights[0].tensor) <= bucket_bytes):
            size += _bytes(weights[0].tensor)
            bucket.append(weights.pop(0))
        with _gathered([part for weight in bucket for part in weight.tensors_to_gather], sharded):
            yield [(weight.name, weight.merged()) for weight in bucket]


def export(
    model: PreTrainedModel, lora: LoraConfig | None, source: str, directory: str, *, bucket_bytes: int, sharded: bool, writes: bool
) -> None:
    """Writes the student as a Hugging Face directory in its own dtype, with the config and tokenizer of `source`.

    Collective; only the rank with `writes` writes. With adapters the directory holds the merged model, and its `adapter/` holds the
    adapters alone, as adapters on the model `source`.
    """
    weights: dict[str, Tensor] = {}
    for named in merged_weights(model, bucket_bytes, sharded=sharded):
        weights |= _copies(named, model.dtype) if writes else {}
    adapters = list(adapter_tensors(model))
    with _gathered([tensor for _, tensor in adapters], sharded):
        adapter_copies = _copies(adapters, model.dtype) if writes else {}

    def write_adapter(staging: Path) -> None:
        if lora is not None:
            save_adapter(adapter_copies, lora, source, staging / "adapter")

    if writes:
        save_weights(weights, source, directory, write_extra=write_adapter)


def _gathered(parameters: list[Tensor], sharded: bool) -> AbstractContextManager:
    """Inside this context sharded parameters are full tensors. Collective."""
    return deepspeed.zero.GatheredParameters(list({id(p): p for p in parameters}.values())) if sharded else nullcontext()


def _copies(named: NamedTensors, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.detach().to(dtype).cpu().clone() for name, tensor in named}


def _bytes(parameter: Tensor) -> int:
    return getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
