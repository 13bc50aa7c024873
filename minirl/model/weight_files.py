"""Weight files of a model directory: their headers, and which tensor becomes which parameter, without reading weights."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from minirl.errors import InputError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
GIT_LFS = b"version https://git-lfs"
# Buffers that older versions of transformers saved and every version recomputes: rotary frequencies, causal masks, position numbers.
RECOMPUTED = re.compile(
    r"(^|\.)((original_)?inv_freq|(sin|cos)_cached|position_ids|(attn|attention|self_attn|self_attention)\.(masked_)?bias)$"
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a weight file. name: in that file; shape and dtype ("F32", "BF16", "I8", ...): from the file's header."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        with safe_open(str(self.file), framework="pt") as tensors:
            return tensors.get_tensor(self.name)


def stored_tensors(path: str) -> dict[str, StoredTensor]:
    """Name -> tensor of all weight files of a model directory. Reads only their headers.

    Raises InputError if a file is missing, cut short or no safetensors file, and if transformers and vLLM would read different files.
    """
    directory = Path(path)
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(directory):
        for tensor in _header(file):
            if tensor.name in tensors:
                raise InputError(
                    f"{file} and {tensors[tensor.name].file.name} both hold {tensor.name}; delete the file that is out of date"
                )
            tensors[tensor.name] = tensor
    return tensors


def _weight_files(directory: Path) -> list[Path]:
    single, index = (directory / name for name in WEIGHTS)
    if (directory / "adapter_config.json").is_file():
        raise InputError(
            f"{directory} holds a LoRA adapter beside its weights (adapter_config.json), which transformers would add to them; merge it "
            "(peft: merge_and_unload), or move the adapter's files out"
        )
    if not index.is_file():
        if not single.is_file():
            raise InputError(f"{directory} holds no {single.name} (or its index); save the model in safetensors format")
        if others := sorted(file.name for file in directory.glob("*.safetensors") if file != single):
            raise InputError(
                f"{directory} holds {single.name} and, without an index, also {', '.join(others[:3])}, which vLLM would read too; "
                "move what is not part of the model out of the directory"
            )
        return [single]
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        problem = _lfs_pointer(index) or f"{index} is no index of weight files (JSON with weight_map); download or copy it again"
        raise InputError(problem) from None
    if single.is_file() and names != [single.name]:
        raise InputError(
            f"{directory} holds both {single.name}, which transformers reads, and {index.name} of other files, which vLLM reads; "
            "delete the one that is out of date"
        )
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise InputError(
            f"{directory} lacks {len(missing)} of the {len(names)} weight files in its index ({', '.join(missing[:3])}); "
            "download or copy them again"
        )
    return [directory / name for name in names]


def _header(file: Path) -> list[StoredTensor]:
    try:
        with safe_open(str(file), framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (a safetensors handle is not iterable)
            return [StoredTensor(file, name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()]
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        problem = f"{file} is no complete safetensors file ({file.stat().st_size} bytes; {reason}); download or copy it again"
        raise InputError(_lfs_pointer(file) or problem) from None


def _lfs_pointer(file: Path) -> str | None:
    with file.open("rb") as opened:
        if opened.read(len(GIT_LFS)) != GIT_LFS:
            return None
    return f"{file} is a pointer of git-lfs, not the file itself; run `git lfs pull` in {file.parent}"


def skeleton_of(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a config without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def sources_of_parameters(model: PreTrainedModel, names: list[str]) -> dict[str, list[str]]:
    """Name in the model -> names in the files that become it, by transformers' own mapping. Several: joined, or one in place of another.

    A name without a parameter maps to nothing here; `weight_accounting` reports it.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    sources: dict[str, list[str]] = {}
    for name in names:
        target, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target = name
        if target in state:
            sources.setdefault(target, []).append(name)
    return sources


def head_sources(model: PreTrainedModel, names: list[str]) -> dict[str, str | None]:
    """Attribute of the output head ("weight", "bias") -> its name in the files; None if they lack it.

    A head that the files hold itself comes before the embedding that it is tied to, as in transformers.
    """
    head = model.get_output_embeddings()
    module = next((name for name, candidate in model.named_modules() if candidate is head), None)
    if head is None or module is None:
        return {"weight": None}
    sources = sources_of_parameters(model, names)
    names_by_attribute: dict[str, str | None] = {}
    for attribute in ("weight", "bias") if getattr(head, "bias", None) is not None else ("weight",):
        target = f"{module}.{attribute}"
        tied = (other for pair in model.all_tied_weights_keys.items() if target in pair for other in pair)
        names_by_attribute[attribute] = next((sources[name][0] for name in (target, *tied) if name in sources), None)
    return names_by_attribute
