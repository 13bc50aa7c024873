"""Accounts for every tensor of a model directory: one InputError says which are missing, left over or misshapen, and why."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from minirl.errors import InputError, first_line
from minirl.model.weight_files import (
    RECOMPUTED,
    StoredTensor,
    head_sources,
    skeleton_of,
    sources_of_parameters,
    stored_tensors,
)
from minirl.quiet import quiet_transformers

NAMES_SHOWN = 3
HEADLESS = "save the model with its head, or set tie_word_embeddings: true in its config.json if its head is the embedding"
FLOATS = {"F64", "F32", "F16", "BF16"}
WRAPPERS = {
    "_orig_mod.": "a compiled module (torch.compile)",
    "_fsdp_wrapped_module.": "an FSDP module",
    "_checkpoint_wrapped_module.": "a module with checkpointed activations",
    "module.": "a DDP or DeepSpeed module",
}
LORA = re.compile(r"\.base_layer\.|lora_[AB]\b|lora_embedding|lora_magnitude|^base_model\.model\.")
QUANTISED = re.compile(r"\.(qweight|qzeros|scales|g_idx|weight_scale(_inv)?|weight_packed|absmax|SCB|quant_map)\b|\.weight\.quant")
OTHER_PARTS = {
    r"(^|\.)(vision|visual|image|audio|multi_modal)": "a model of images or sound",
    r"(^|\.)(v_head|value_head|score|reward_head|classifier)\.": "a value, reward or classification head",
}


@dataclass(frozen=True)
class Differences:
    """What the files and the model do not have in common.

    missing: names in the model; unexpected: names in the files; mismatched: (name, shape in the files, shape in the model).
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)


def check_weights(path: str, key: str) -> None:
    """Check, before anything loads, that the files of a model directory hold exactly the model's weights. Reads headers only.

    transformers itself loads tensors without memory, so its renamings, conversions and ties apply. Raises InputError that names `key`.
    """
    try:
        tensors = stored_tensors(path)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    config = AutoConfig.from_pretrained(path)
    skeleton = skeleton_of(config)
    if getattr(config, "quantization_config", None):  # names and shapes of the layers belong to the quantiser
        return check_readable_head(skeleton, tensors, path, key)
    empty = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}
    try:
        with quiet_transformers():
            model, info = type(skeleton).from_pretrained(
                None, config=config, state_dict=empty, device_map={"": "meta"}, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (RuntimeError, ValueError, KeyError, IndexError) as error:  # a conversion that several tensors take part in
        raise InputError(f"{key}: transformers cannot combine the weights in {path} ({first_line(error)}); save the model again") from None
    check_loaded(model, info, tensors, path, key)


def check_loaded(model: PreTrainedModel, info: dict[str, Any], tensors: dict[str, StoredTensor], path: str, key: str) -> None:
    """Raises InputError unless loading gave every weight of the model one tensor of the files and left none over.

    info: what `from_pretrained(output_loading_info=True)` returned. tensors: those of `stored_tensors`.
    """
    differences = _differences(model, info)
    if differences:
        raise InputError(f"{key}: {_sentence(differences, model, path)}")
    sources = sources_of_parameters(model, list(tensors))
    if not getattr(model.config, "quantization_config", None):
        _check_single_source(model, sources, tensors, path, key)
    _check_ties(model, sources, tensors, path, key)


def check_readable_head(model: PreTrainedModel, tensors: dict[str, StoredTensor], path: str, key: str) -> None:
    """Raises InputError unless the files hold the model's output head as floating-point numbers in the model's shape."""
    head = model.get_output_embeddings()
    for attribute, name in head_sources(model, list(tensors)).items():
        if name is None:
            raise InputError(f"{key}: {path} holds no output head of {type(model).__name__}; {HEADLESS}")
        shape = tuple(getattr(head, attribute).shape)
        if tensors[name].shape != shape or tensors[name].dtype not in FLOATS:
            raise InputError(
                f"{key}: {name} in {path} has shape {list(tensors[name].shape)} and type {tensors[name].dtype}, and the output head of "
                f"{type(model).__name__} needs {list(shape)} in floating point; correct config.json, or name an unquantised model"
            )


def _differences(model: PreTrainedModel, info: dict[str, Any]) -> Differences:
    recomputed = {name for name, _ in model.named_non_persistent_buffers()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}

    def counts(name: str) -> bool:
        return name not in recomputed and (name in parameters or not RECOMPUTED.search(name))

    return Differences(
        sorted(filter(counts, info["missing_keys"])),
        sorted(filter(counts, info["unexpected_keys"])),
        sorted((name, tuple(stored), tuple(needed)) for name, stored, needed in info["mismatched_keys"] if counts(name)),
    )


def _check_single_source(
    model: PreTrainedModel, sources: dict[str, list[str]], tensors: dict[str, StoredTensor], path: str, key: str
) -> None:
    for target, names in sources.items():
        if len(names) > 1 and all(tensors[name].shape == tuple(model.get_parameter_or_buffer(target).shape) for name in names):
            raise InputError(f"{key}: {path} holds {target} twice, as {' and '.join(names[:2])}; delete the one that is out of date")
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for target, names in sources.items():
        if target in parameters and (name := next((name for name in names if tensors[name].dtype not in FLOATS), None)):
            raise InputError(
                f"{key}: {name} in {path} is stored as {tensors[name].dtype}, not in floating point, and config.json says nothing of a "
                "quantisation; name an unquantised model"
            )


def _check_ties(model: PreTrainedModel, sources: dict[str, list[str]], tensors: dict[str, StoredTensor], path: str, key: str) -> None:
    """Raises InputError if config.json ties two weights that differ in the files: transformers would then read both, vLLM one."""
    for tied, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if tied not in sources or source not in sources or sources[tied] == sources[source]:
            continue
        tied_name, source_name = sources[tied][0], sources[source][0]
        if not torch.equal(tensors[tied_name].read(), tensors[source_name].read()):
            raise InputError(
                f"{key}: the config.json of {path} ties {tied_name} to {source_name}, but the file holds two different tensors, and "
                f"vLLM would ignore {tied_name}; set tie_word_embeddings: false in that config.json to use it, or delete it from the file"
            )


def _sentence(differences: Differences, model: PreTrainedModel, path: str) -> str:
    parts = []
    if differences.missing:
        parts.append(f"{len(differences.missing)} missing ({_few(differences.missing)})")
    if differences.unexpected:
        parts.append(f"{len(differences.unexpected)} unexpected ({_few(differences.unexpected)})")
    if differences.mismatched:
        name, stored, needed = differences.mismatched[0]
        parts.append(f"{len(differences.mismatched)} of another shape ({name} is {list(stored)}, config.json gives {list(needed)})")
    return f"the weights in {path} are not those of its {type(model).__name__}: {', '.join(parts)}; {_hint(differences, model)}"


def _hint(differences: Differences, model: PreTrainedModel) -> str:
    if hint := _hint_from_names(differences.unexpected, differences.missing):
        return hint
    head = model.get_output_embeddings()
    of_head = {id(tensor) for tensor in head.parameters()} if head is not None else set()
    if differences.missing and of_head.issuperset(id(model.get_parameter_or_buffer(name)) for name in differences.missing):
        return f"the output head is not in the file; {HEADLESS}"
    layers = model.config.get_text_config().num_hidden_layers
    missing, unexpected = _blocks(differences.missing), _blocks(differences.unexpected)
    if unexpected and min(unexpected) >= layers:
        return f"the file has {max(unexpected) + 1} blocks, and config.json says {layers}; correct its number of layers"
    if missing and len(missing) < layers:
        blocks = ", ".join(map(str, sorted(missing)[:NAMES_SHOWN]))
        return f"block {blocks} is not (or not all) in the file: the save is incomplete, or config.json does not belong to these weights"
    if differences.mismatched and not differences.missing:
        return "config.json does not belong to these weights; take both from the same model"
    return "name a complete model, as `save_pretrained` writes it"


def _hint_from_names(unexpected: list[str], missing: list[str]) -> str | None:
    """What names that the model does not have say about how the file was saved."""
    if any(map(LORA.search, unexpected)):
        return "it holds LoRA adapters that were never merged; merge them (peft: merge_and_unload) and save the model again"
    if any(map(QUANTISED.search, unexpected)):
        return "it is quantised, and config.json has no quantization_config; name an unquantised model"
    for wrapper, origin in WRAPPERS.items():
        if any(name.startswith(wrapper) or f".{wrapper}" in name for name in unexpected):
            return f"it was saved from {origin}; strip `{wrapper}` from the names and save it again"
    names = set(missing)
    for name in unexpected:
        parts = name.split(".")
        for start in range(1, len(parts)):
            if ".".join(parts[start:]) in names:
                return f"its names have a prefix of another module; strip `{'.'.join(parts[:start])}.` from them and save it again"
    for pattern, part in OTHER_PARTS.items():
        if any(re.search(pattern, name) for name in unexpected):
            return f"it belongs to {part}; save the causal language model alone"
    return None


def _blocks(names: list[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := re.search(r"\.(\d+)\.", name))}


def _few(names: list[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
