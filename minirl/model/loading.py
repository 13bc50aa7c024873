"""Model directories: find, check, load, prune, fingerprint and save causal LMs; read an output head alone."""

import copy
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from minirl.errors import InputError
from minirl.model.output_head import OutputHead, head_scale, head_soft_cap

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
FINGERPRINT_PARTS, FINGERPRINT_BYTES = 64, 16384
DROPOUTS = ("attention_dropout", "attn_pdrop", "dropout", "embd_pdrop", "hidden_dropout", "activation_dropout", "layerdrop", "resid_pdrop")


def resolve_model(name: str, key: str) -> str:
    """The path of a local model directory, or of a downloaded (or cached) hub model. Raises InputError that names the config key."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{key}: {name} is a directory but holds no config.json, so it is not a Hugging Face model; name one that is")
        if not any((path / weights).is_file() for weights in WEIGHTS):
            raise InputError(f"{key}: {name} holds no {WEIGHTS[0]} (or its index); save the model in safetensors format")
        return str(path.resolve())
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise InputError(f"{key}: {name} is not a model: there is no such directory; check the path")
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])
    except Exception as error:  # the hub client raises many kinds of errors; all mean the same to the user
        reason = type(error).__name__
        raise InputError(
            f"{key}: {name} is neither a local directory nor a model that the hub provides ({reason}); check the name or the network"
        ) from None


def check_supported(path: str, key: str) -> PretrainedConfig:
    """The config of a dense decoder-only causal model. Raises InputError for any other model."""
    try:
        config = AutoConfig.from_pretrained(path)
    except (ValueError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{key}: transformers cannot read the config of {path}, so name another model: {reason}") from None
    architecture = (config.architectures or ["none"])[0]
    if config.is_encoder_decoder or not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise InputError(f"{key}: {architecture} is not a decoder-only causal language model; name one that is")
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise InputError(f"{key}: {architecture} is a mixture of experts; name a dense model, the only kind supported")
    return config


def load_causal_lm(path: str, dtype: torch.dtype, *, dropout: bool = True, attention: str | None = None) -> PreTrainedModel:
    """The model in training mode. With `dropout` False every dropout rate is 0, so that training mode equals evaluation mode.

    attention: the name of a kernel in transformers; None lets transformers choose.
    """
    config = AutoConfig.from_pretrained(path)
    if not dropout:
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
    return AutoModelForCausalLM.from_pretrained(path, config=config, dtype=dtype, attn_implementation=attention).train()


def read_head(path: str, vocabulary: int) -> OutputHead:
    """The output head of a model directory, without loading the rest of the model. Raises InputError if the weights hold no head."""
    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    linear = skeleton.get_output_embeddings()
    weight = _read_tensor(path, _names_of(skeleton, linear.weight, config))
    bias = None if getattr(linear, "bias", None) is None else _read_tensor(path, _names_of(skeleton, linear.bias, config))
    return OutputHead(weight, bias, head_scale(config), head_soft_cap(config), vocabulary)


def _names_of(model: PreTrainedModel, parameter: Tensor, config: PretrainedConfig) -> list[str]:
    """All names under which the weight files may hold the parameter."""
    names = [name for name, p in model.named_parameters(remove_duplicate=False) if p is parameter]
    if config.tie_word_embeddings:
        embedding = model.get_input_embeddings().weight
        names += [name for name, p in model.named_parameters(remove_duplicate=False) if p is embedding]
    prefix = model.base_model_prefix + "."
    return names + [name.removeprefix(prefix) for name in names]  # some GPT-2 files omit the prefix


def _read_tensor(path: str, names: list[str]) -> Tensor:
    index = Path(path) / WEIGHTS[1]
    files = json.loads(index.read_text())["weight_map"] if index.is_file() else None
    for name in names:
        file = files.get(name) if files else WEIGHTS[0]
        if file is None:
            continue
        with safe_open(str(Path(path) / file), framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 (a safetensors handle is not iterable)
                return tensors.get_tensor(name)
    missing = ", ".join(dict.fromkeys(names))
    raise InputError(f"{path} holds none of {missing}, so its output head cannot be read; name a model saved with its output head")


def prune_layers(path: str, layers: list[int], directory: str) -> str:
    """Write the model in `path` with only the given decoder layers, in order, as a Hugging Face directory; return its path.

    Raises InputError unless `layers` are ascending indices of layers that the model has.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    config = model.config
    total = config.num_hidden_layers
    if layers != sorted(set(layers)) or not layers or layers[-1] >= total:
        raise InputError(f"student.layers must name some of the teacher's {total} layers, 0 to {total - 1}, each once and in order")
    blocks = next(name for name, m in model.base_model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == total)
    parent, _, attribute = blocks.rpartition(".")
    owner = model.base_model.get_submodule(parent)
    setattr(owner, attribute, nn.ModuleList(getattr(owner, attribute)[i] for i in layers))
    pruned_config = copy.deepcopy(config)
    if getattr(pruned_config, "layer_types", None):
        pruned_config.layer_types = [config.layer_types[i] for i in layers]
    pruned_config.num_hidden_layers = len(layers)
    model.config = pruned_config
    staging = f"{directory}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging)
    copy_tokenizer_files(path, staging, also=("generation_config.json",))
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(staging, directory)
    return directory


def fingerprint(path: str) -> str:
    """A checksum of a sample of the weights' bytes. A copy has the same one. Fast for models of any size."""
    crc = 0
    for file in sorted(Path(path).glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as weights:
            for part in range(FINGERPRINT_PARTS):
                weights.seek(max(0, size - FINGERPRINT_BYTES) * part // (FINGERPRINT_PARTS - 1))  # includes the first and the last bytes
                crc = zlib.crc32(weights.read(FINGERPRINT_BYTES), zlib.crc32(f"{file.name} {size}".encode(), crc))
    return f"{crc:08x}"


def architecture_signature(path: str) -> str:
    """The model's config as JSON, without the keys that do not affect the names and shapes of its weights.

    Two directories with equal signatures hold weights of equal names and shapes.
    """
    config = AutoConfig.from_pretrained(path).to_dict()
    ignored = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
    return json.dumps({key: value for key, value in sorted(config.items()) if key not in ignored}, default=str)


def copy_tokenizer_files(source: str, target: str, also: tuple[str, ...] = ()) -> None:
    """Copy the tokenizer and its chat template, and the files named in `also`, from one model directory to another."""
    for file in Path(source).iterdir():
        tokenizer = file.name.startswith(("tokenizer", "special_tokens", "vocab", "merges", "chat_template", "added_tokens"))
        if file.is_file() and (tokenizer or file.name in also):
            shutil.copy(file, Path(target) / file.name)


def save_weights(weights: dict[str, Tensor], source: str, directory: str, *, write_extra: Callable[[Path], None] | None = None) -> None:
    """Write weights as a Hugging Face directory that `AutoModelForCausalLM` and `vllm serve` load; config and tokenizer come from `source`.

    write_extra: called with the staging directory to write more files, before the directory gets its final name.
    """
    config = AutoConfig.from_pretrained(source)
    dtype = next(iter(weights.values())).dtype
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=dtype)
    staging = f"{directory}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    skeleton.config.dtype = dtype
    skeleton.save_pretrained(staging, state_dict=dict(weights))
    copy_tokenizer_files(source, staging, also=("generation_config.json",))
    if write_extra is not None:
        write_extra(Path(staging))
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(staging, directory)
