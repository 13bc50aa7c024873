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

from minirl.errors import InputError, RunError
from minirl.model.attention import default_kernel
from minirl.model.weight_accounting import check_loaded, check_weights
from minirl.model.weight_files import WEIGHTS, quiet_transformers, skeleton_of, stored_tensors

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


def check_supported(path: str, key: str, *, learns: bool = True) -> PretrainedConfig:
    """The config of a decoder-only causal model. Raises InputError for any other model, and for a mixture of experts that `learns`."""
    try:
        config = AutoConfig.from_pretrained(path)
    except (ValueError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{key}: transformers cannot read the config of {path}, so name another model: {reason}") from None
    architecture = (config.architectures or ["none"])[0]
    if config.is_encoder_decoder or not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise InputError(f"{key}: {architecture} is not a decoder-only causal language model; name one that is")
    if learns and any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise InputError(f"{key}: {architecture} is a mixture of experts, which can teach but not be trained; name a dense model")
    return config


def load_causal_lm(path: str, dtype: torch.dtype, *, dropout: bool = True, attention: str | None = None) -> PreTrainedModel:
    """The model in training mode. With `dropout` False every dropout rate is 0, so that training mode equals evaluation mode.

    attention: the name of a kernel in transformers; None for sdpa, or for eager if sdpa does not compute this model. Raises InputError
    unless the files hold exactly the model's weights.
    """
    config = AutoConfig.from_pretrained(path)
    if not dropout:
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
    return load_configured(path, config, dtype=dtype, attention=attention or default_kernel(config)).train()


def load_configured(path: str, config: PretrainedConfig, *, dtype: torch.dtype | str, attention: str | None = None) -> PreTrainedModel:
    """The model in `path` under a changed config; dtype "auto" is the files' own. Raises InputError like `load_causal_lm`."""
    tensors = stored_tensors(path)
    try:
        with quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
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
