"""Model directories: find, check, load, fingerprint and save causal language models."""

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from minirl.errors import InputError, RunError, first_line
from minirl.hub import hub_problem
from minirl.model.attention import default_kernel
from minirl.model.weight_accounting import check_loaded, check_weights
from minirl.model.weight_files import WEIGHTS, skeleton_of, stored_tensors
from minirl.quiet import quiet_transformers

MOST_LAYERS = 10_000
FINGERPRINT_PARTS, FINGERPRINT_BYTES = 64, 16384
DROPOUTS = ("attention_dropout", "attn_pdrop", "dropout", "embd_pdrop", "hidden_dropout", "activation_dropout", "layerdrop", "resid_pdrop")


def resolve_model(name: str, key: str) -> str:
    """The path of a local model directory, or of a downloaded (or cached) hub model. Raises InputError that names the config key."""
    path = Path(name)
    try:
        if path.is_dir():
            _check_is_model(path, f"{key}: {name}")
            return str(path.resolve())
        is_file = path.is_file()
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {name} cannot be read ({first_line(error)}); check the path") from None
    if is_file:
        raise InputError(f"{key}: {name} is a file; name the directory that holds config.json and the weights")
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise InputError(f"{key}: {name} is not a model: there is no such directory; check the path")
    from huggingface_hub import snapshot_download

    try:
        directory = snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"])
    except Exception as error:  # the hub's client raises many kinds of errors
        raise InputError(f"{key}: {name} is no local directory, and the hub does not provide it: {hub_problem(error)}") from None
    _check_is_model(Path(directory), f"{key}: {name} on the hub")
    return directory


def _check_is_model(path: Path, subject: str) -> None:
    if not (path / "config.json").is_file():
        raise InputError(f"{subject} is a directory but holds no config.json, so it is not a Hugging Face model; name one that is")
    if not any((path / weights).is_file() for weights in WEIGHTS):
        raise InputError(f"{subject} holds no {WEIGHTS[0]} (or its index); save the model in safetensors format")


def check_supported(path: str, key: str, *, learns: bool = True) -> PretrainedConfig:
    """The config of a decoder-only causal model, of which transformers can build a model.

    Raises InputError for any other model, for a quantised one, and for a mixture of experts that `learns`.
    """
    file = Path(path) / "config.json"
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # strict validation raises errors of types of its own
        raise InputError(f"{key}: transformers cannot read {file} ({first_line(error)}); correct it, or name another model") from None
    quantisation = getattr(config, "quantization_config", None) or getattr(config.get_text_config(), "quantization_config", None)
    if quantisation:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else getattr(quantisation, "quant_method", None)
        raise InputError(
            f"{key}: {path} is quantised ({method or 'quantization_config in its config.json'}), and its head is needed in "
            "floating point; name the model that it was made from, in bfloat16, float16 or float32"
        )
    if not isinstance(config.architectures, list) or not config.architectures:
        raise InputError(f"{key}: {file} names no class of the model (architectures); copy the whole file, or name another model")
    architecture = str(config.architectures[0])
    if config.is_encoder_decoder or not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise InputError(f"{key}: {architecture} is not a decoder-only causal language model; name one that is")
    if learns and any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise InputError(f"{key}: {architecture} is a mixture of experts, which can teach but not be trained; name a dense model")
    for name, optional in (("vocab_size", False), ("hidden_size", False), ("max_position_embeddings", True)):
        value = getattr(config, name, None)
        if not (value is None and optional) and (type(value) is not int or value < 1):
            raise InputError(f"{key}: {file} has {name} = {value!r}, where a positive integer belongs; correct it, or name another model")
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if type(layers) is int and layers > MOST_LAYERS:  # building them would take all memory
        raise InputError(f"{key}: {file} has num_hidden_layers = {layers}; correct it, or name another model")
    try:
        skeleton_of(config)
    except Exception as error:  # head counts that do not divide, an unknown activation function, ...
        raise InputError(
            f"{key}: transformers cannot build the model that {file} describes ({first_line(error)}); correct it, or name another model"
        ) from None
    return config


def load_causal_lm(
    path: str, dtype: torch.dtype, *, dropout: bool = True, attention: str | None = None, device: str | None = "cpu"
) -> PreTrainedModel:
    """The model in training mode. With `dropout` False every dropout rate is 0, so that training mode equals evaluation mode.

    attention: the name of a kernel in transformers; None for sdpa, or for eager if sdpa does not compute this model. device: see
    `load_configured`. Raises InputError unless the files hold exactly the model's weights.
    """
    config = AutoConfig.from_pretrained(path)
    if not dropout:
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
    return load_configured(path, config, dtype=dtype, attention=attention or default_kernel(config), device=device).train()


def load_configured(
    path: str, config: PretrainedConfig, *, dtype: torch.dtype | str, attention: str | None = None, device: str | None = "cpu"
) -> PreTrainedModel:
    """The model in `path` under a changed config; dtype "auto" is the files' own. Raises InputError like `load_causal_lm`.

    device: each weight goes straight there from the memory-mapped file, so that the host never holds a copy of the whole model. On a CPU,
    weights in the files' own dtype stay mapped, shared by all processes of the node, until one writes to them. None: transformers decides,
    as it must where DeepSpeed shards the weights while they load.
    """
    tensors = stored_tensors(path)
    try:
        with quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                device_map=None if device is None else {"": device},
                output_loading_info=True,
                generation_config=GenerationConfig(),  # training needs none, and transformers may refuse the one in the directory
                ignore_mismatched_sizes=True,  # reported below, together with the names
            )
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"transformers cannot load the model in {path}, so name another or save it again: {reason}") from None
    check_loaded(model, info, tensors, path, "the model")
    return model


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

    write_extra: called with the staging directory to write more files, before the directory gets its final name. Raises RunError unless
    the written weights are exactly those of the model.
    """
    dtype = next(iter(weights.values())).dtype
    skeleton = skeleton_of(AutoConfig.from_pretrained(source)).to(dtype)
    staging = f"{directory}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    skeleton.config.dtype = dtype
    skeleton.save_pretrained(staging, state_dict=dict(weights))
    copy_tokenizer_files(source, staging, also=("generation_config.json",))
    if write_extra is not None:
        write_extra(Path(staging))
    try:
        check_weights(staging, directory)
    except InputError as error:
        raise RunError(f"the saved model is not complete: {error}") from None
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(staging, directory)
