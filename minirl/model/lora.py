"""Low-rank adapters on the student (LoRA, arXiv 2106.09685): they alone are trained, and everyone else sees them merged.

A linear layer with the weight W [out, in] computes W x + (alpha / rank) B A x, where A [rank, in] is drawn anew and B [out, rank] is zero
at first. Merged, that is one weight of W's name and shape, W + (alpha / rank) B A: what engines load and what a stage leaves behind.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minirl.config.student import LoraConfig
from minirl.errors import InputError

ADAPTER = "default"  # peft's name for the one adapter that there is


@dataclass(frozen=True)
class Adapter:
    """What a layer computes beside its weight. a: [rank, in], b: [out, rank]; transposed: the layer keeps its weight as [in, out]."""

    a: Tensor
    b: Tensor
    scale: float
    transposed: bool


@dataclass(frozen=True)
class StudentWeight:
    """One of the student's weights under its Hugging Face name. tensor: as the model holds it; adapter: None where nothing is added."""

    name: str
    tensor: Tensor
    adapter: Adapter | None = None

    @property
    def tensors_to_gather(self) -> list[Tensor]:
        """What `merged` reads: under ZeRO 3 these have to be gathered first."""
        return [self.tensor] if self.adapter is None else [self.tensor, self.adapter.a, self.adapter.b]

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight's own data, or with an adapter a new tensor in float32: W + scale B A."""
        if self.adapter is None:
            return self.tensor.data
        delta = self.adapter.b.float() @ self.adapter.a.float()
        return torch.add(self.tensor.float(), delta.T if self.adapter.transposed else delta, alpha=self.adapter.scale)


def attach_adapters(model: PreTrainedModel, config: LoraConfig, *, seed: int, dropout: bool) -> None:
    """Put fresh adapters into the model, in place, and freeze all else. The same seed draws the same, whatever was drawn before.

    dropout False: train without, whatever the config says. Raises InputError where the targets are not linear layers of the body.
    """
    import peft  # takes seconds, and most students have no adapters

    targets = config.target_modules
    ours = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout if dropout else 0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    ends = {id(model.get_input_embeddings()): "input embedding", id(model.get_output_embeddings()): "output head"}
    with torch.random.fork_rng(), warnings.catch_warnings():
        for known in ("fan_in_fan_out", "Model has `tie_word_embeddings"):  # peft sees how GPT-2 keeps its weights; heads are refused below
            warnings.filterwarnings("ignore", known, UserWarning)
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(ours, model, ADAPTER)
        except (ValueError, TypeError) as error:
            raise InputError(f"student.lora.target_modules does not fit the student: {_first_sentence(error)}") from None
    for name, layer in model.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer) and id(layer.base_layer) in ends:
            raise InputError(
                f"student.lora.target_modules takes in {name}, the student's {ends[id(layer.base_layer)]}, which stays as it is "
                "(it may be tied, and its gradient has a kernel of its own); name linear layers of the blocks, or all-linear"
            )
    for parameter in trainable_parameters(model):
        parameter.data = parameter.data.to(model.dtype)


def check_targets(path: str, config: LoraConfig) -> None:
    """The refusals of `attach_adapters` for the model in a directory, without its weights."""
    with torch.device("meta"):
        attach_adapters(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path)), config, seed=0, dropout=False)


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def student_weights(model: PreTrainedModel) -> list[StudentWeight]:
    """The student's weights under all their names, with adapters or without; tied ones side by side."""
    named = [weight for name, tensor in model.state_dict(keep_vars=True).items() if (weight := _weight_of(model, name, tensor))]
    first = {id(weight.tensor): place for place, weight in reversed(list(enumerate(named)))}
    return sorted(named, key=lambda weight: first[id(weight.tensor)])


def adapter_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The adapters' parameters under the names that peft gives them in a file."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if f".{ADAPTER}." in name:
            yield f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}", tensor


def save_adapter(tensors: dict[str, Tensor], config: LoraConfig, base: str, directory: Path) -> None:
    """Write a directory that `PeftModel.from_pretrained` puts onto the model `base`. tensors: those of `adapter_tensors`, whole."""
    import peft

    targets = sorted({name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors})
    directory.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "adapter_model.safetensors", {"format": "pt"})
    peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    ).save_pretrained(str(directory))


def _weight_of(model: PreTrainedModel, name: str, tensor: Tensor) -> StudentWeight | None:
    """None for a part of an adapter, which is in the weight that it belongs to."""
    if f".{ADAPTER}." in name:
        return None
    owner, base, attribute = name.rpartition(".base_layer.")
    if not base:
        return StudentWeight(name, tensor)
    layer = model.get_submodule(owner)
    weight = StudentWeight(f"{owner}.{attribute}", tensor)
    if attribute != "weight":
        return weight
    a, b = (part[ADAPTER].weight for part in (layer.lora_A, layer.lora_B))
    return replace(weight, adapter=Adapter(a, b, layer.scaling[ADAPTER], layer.fan_in_fan_out))


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
