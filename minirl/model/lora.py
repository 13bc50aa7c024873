"""LoRA adapters on the student (arXiv 2106.09685): attach them, merge them into the weights, save them.

Only the adapters are trained. A linear layer with the weight W [out, in] computes W x + (alpha / rank) B A x, where A [rank, in] starts
random and B [out, rank] starts at zero. Merged, that is one weight with the name and shape of W: W + (alpha / rank) B A. Engines load the
merged weights, and a stage saves them.
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
from minirl.errors import InputError, first_line

ADAPTER = "default"  # the name that peft gives the only adapter


@dataclass(frozen=True)
class Adapter:
    """The adapter of a layer. a: [rank, in]; b: [out, rank]; scale: alpha / rank; transposed: the layer stores its weight as [in, out]."""

    a: Tensor
    b: Tensor
    scale: float
    transposed: bool


@dataclass(frozen=True)
class StudentWeight:
    """One weight of the student under its Hugging Face name. tensor: as stored in the model; adapter: None if the weight has none."""

    name: str
    tensor: Tensor
    adapter: Adapter | None = None

    @property
    def tensors_to_gather(self) -> list[Tensor]:
        """The tensors that `merged` reads; under ZeRO-3 they must be gathered first."""
        return [self.tensor] if self.adapter is None else [self.tensor, self.adapter.a, self.adapter.b]

    @torch.no_grad()
    def merged(self) -> Tensor:
        """Without an adapter, the data of the weight itself; with one, a new float32 tensor W + scale B A."""
        if self.adapter is None:
            return self.tensor.data
        delta = self.adapter.b.float() @ self.adapter.a.float()
        return torch.add(self.tensor.float(), delta.T if self.adapter.transposed else delta, alpha=self.adapter.scale)


def attach_adapters(model: PreTrainedModel, config: LoraConfig, *, seed: int, dropout: bool) -> None:
    """Add new adapters to the model, in place, and freeze all other parameters. The initial values depend on `seed` alone.

    dropout: False disables adapter dropout, whatever the config says. Raises InputError if the targets are not linear layers of the blocks.
    """
    import peft  # the import takes seconds, and most students have no adapters

    targets = config.target_modules
    peft_config = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout if dropout else 0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    protected = {id(model.get_input_embeddings()): "input embedding", id(model.get_output_embeddings()): "output head"}
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft detects by itself how GPT-2 stores its weights; adapters on tied heads are refused below
        for message in ("fan_in_fan_out", "Model has `tie_word_embeddings"):
            warnings.filterwarnings("ignore", message, UserWarning)
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(peft_config, model, ADAPTER)
        except (ValueError, TypeError) as error:
            raise InputError(f"student.lora.target_modules does not fit the student: {_first_sentence(error)}") from None
    for name, layer in model.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer) and id(layer.base_layer) in protected:
            raise InputError(
                f"student.lora.target_modules includes {name}, the student's {protected[id(layer.base_layer)]}, which cannot be adapted "
                "(it may be tied, and its gradient has a separate kernel); name linear layers of the blocks, or all-linear"
            )
    for parameter in trainable_parameters(model):
        parameter.data = parameter.data.to(model.dtype)


def check_targets(path: str, config: LoraConfig) -> None:
    """Check the adapter targets for the model in a directory without reading its weights. Raises InputError like `attach_adapters`."""
    with torch.device("meta"):
        attach_adapters(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path)), config, seed=0, dropout=False)


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def student_weights(model: PreTrainedModel) -> list[StudentWeight]:
    """The student's weights, with or without adapters. A tied weight comes once, under its first name, as in a model's file."""
    weights = [weight for name, tensor in model.state_dict(keep_vars=True).items() if (weight := _weight_of(model, name, tensor))]
    return list({id(weight.tensor): weight for weight in reversed(weights)}.values())[::-1]


def adapter_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each adapter parameter, with the names that peft uses in adapter files."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if f".{ADAPTER}." in name:
            yield f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}", tensor


def save_adapter(tensors: dict[str, Tensor], config: LoraConfig, base: str, directory: Path) -> None:
    """Write an adapter directory that `PeftModel.from_pretrained` loads onto the model `base`.

    tensors: those of `adapter_tensors`, gathered from all ranks.
    """
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
    """The weight of one entry of the state dict; None for an adapter parameter, which belongs to the weight of its layer."""
    if f".{ADAPTER}." in name:
        return None
    owner, base, attribute = name.rpartition(".base_layer.")
    if not base:
        return StudentWeight(name, tensor)
    layer = model.get_submodule(owner)
    weight = StudentWeight(f"{owner}.{attribute}", tensor)
    if attribute != "weight":
        return weight
    a, b = (matrices[ADAPTER].weight for matrices in (layer.lora_A, layer.lora_B))
    return replace(weight, adapter=Adapter(a, b, layer.scaling[ADAPTER], layer.fan_in_fan_out))


def _first_sentence(error: Exception) -> str:
    return first_line(error).partition(". ")[0]
