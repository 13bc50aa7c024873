"""Prunes a model to some of its layers (`student.layers`), and checks the result against the layers that it came from."""

import copy
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel

from minirl.data.generation_config import read_generation_config
from minirl.errors import InputError
from minirl.model.loading import copy_tokenizer_files, load_configured
from minirl.model.weight_files import stored_tensors
from minirl.quiet import quiet_transformers

PROBE_TOKENS = 16
PROBE_WINDOW = 4  # windows of the models that are compared, so that a few tokens reach past them
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
LAYER_NUMBERS = ("mlp_only_layers", "full_attn_idxs", "moe_layers")  # lists of the numbers of layers
FIRST_LAYERS = ("max_window_layers", "first_k_dense_replace")  # how many of the first layers differ from the others


def prune_layers(path: str, layers: list[int], directory: str) -> str:
    """Write the model in `path` with only the given decoder layers, in order, as a Hugging Face directory; return its path.

    Settings that the config lists for each layer keep to their layers. What was written is loaded again and compared with the kept layers
    of the model. Raises InputError unless `layers` are ascending indices of layers that the model has, and for a model whose layers
    compute something else at another place.
    """
    stored_tensors(path)  # broken files are refused before anything is loaded
    config = AutoConfig.from_pretrained(path)
    total = config.num_hidden_layers
    if layers != sorted(set(layers)) or not layers or layers[0] < 0 or layers[-1] >= total:
        raise InputError(f"student.layers must name some of the teacher's {total} layers, 0 to {total - 1}, each once and in order")
    pruned_config = _with_layers(config, layers)
    model = load_configured(path, _with_small_windows(config), dtype="auto", attention="eager").eval()
    owner, attribute = _blocks(model, total)
    tokens = _probe(model)
    expected = _logits_without(model, getattr(owner, attribute), set(range(total)) - set(layers), tokens)
    if not torch.isfinite(expected).all():
        raise InputError(f"student.layers: the weights in {path} give numbers that are not finite; download or copy them again")
    setattr(owner, attribute, nn.ModuleList(getattr(owner, attribute)[i] for i in layers))
    model.config = pruned_config
    model.generation_config = read_generation_config(path) or GenerationConfig.from_model_config(pruned_config)
    staging = f"{directory}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    with _refusing(layers), quiet_transformers():
        model.save_pretrained(staging)
        del model, owner
        _check_same(staging, expected, tokens)
    copy_tokenizer_files(path, staging)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(staging, directory)
    return directory


def _with_layers(config: PretrainedConfig, layers: list[int]) -> PretrainedConfig:
    """The config of the pruned model: every list with one entry for each layer is cut to the kept layers, and layers are renumbered."""
    pruned, total = copy.deepcopy(config), config.num_hidden_layers
    for name, value in config.to_dict().items():
        if name in LAYER_NUMBERS and isinstance(value, list):
            setattr(pruned, name, [layers.index(i) for i in value if i in layers])
        elif name in FIRST_LAYERS and isinstance(value, int):
            setattr(pruned, name, sum(i < value for i in layers))
        elif isinstance(value, list | tuple) and len(value) == total and not name.endswith(("token_id", "token_ids", "architectures")):
            setattr(pruned, name, [value[i] for i in layers])
    if getattr(config, "attention_layers", None) and getattr(config, "attention_types", None):  # GPT-Neo derives the list from this
        pruned.attention_types = [[[config.attention_layers[i]], 1] for i in layers]
    pruned.num_hidden_layers = len(layers)
    return pruned


def _with_small_windows(config: PretrainedConfig) -> PretrainedConfig:
    probed = copy.deepcopy(config)
    for name in WINDOWS:
        if isinstance(getattr(config, name, None), int):
            setattr(probed, name, min(getattr(config, name), PROBE_WINDOW))
    return probed


def _blocks(model: PreTrainedModel, total: int) -> tuple[nn.Module, str]:
    """The module that owns the list of the decoder layers, and the name of the list in it."""
    lists = (name for name, module in model.base_model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == total)
    name = next(lists, None)
    if name is None:
        raise InputError(f"student.layers: the layers of {type(model).__name__} are not one list of {total} modules; name a student.model")
    parent, _, attribute = name.rpartition(".")
    return model.base_model.get_submodule(parent), attribute


def _probe(model: PreTrainedModel) -> Tensor:
    length = min(PROBE_TOKENS, getattr(model.config, "max_position_embeddings", None) or PROBE_TOKENS)
    rows = model.get_input_embeddings().weight.shape[0]
    return torch.randint(rows, (1, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits_without(model: PreTrainedModel, blocks: nn.ModuleList, dropped: set[int], tokens: Tensor) -> Tensor:
    """The model's logits where the dropped layers pass their input on. All layers keep their number, and what depends on it."""

    def pass_on(_module, arguments, named, output):
        hidden = arguments[0] if arguments else named["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hooks = [blocks[index].register_forward_hook(pass_on, with_kwargs=True) for index in dropped]
    logits = model(tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits


@torch.no_grad()
def _check_same(directory: str, expected: Tensor, tokens: Tensor) -> None:
    """Raises ValueError unless the pruned model, as loaded from its directory, computes the expected logits."""
    config = _with_small_windows(AutoConfig.from_pretrained(directory))
    pruned = load_configured(directory, config, dtype="auto", attention="eager").eval()
    tolerance = 1e-5 if expected.dtype == torch.float32 else 1e-2
    logits = pruned(tokens, use_cache=False).logits.float()
    if not torch.allclose(logits, expected.float(), rtol=tolerance, atol=tolerance * float(expected.abs().max())):
        raise ValueError("they would compute something else")


@contextmanager
def _refusing(layers: list[int]) -> Iterator[None]:
    """Turns whatever transformers finds in a config that does not fit fewer layers into an InputError."""
    try:
        yield
    except OSError:  # the disk, not the model
        raise
    except Exception as error:  # transformers checks a config in many ways
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"student.layers: a config of this family cannot state layers {layers} alone, because a layer's computation depends on its "
            f"number, as with scale_attn_by_inverse_layer_idx, an interval or a pattern ({reason}); keep the first {len(layers)} layers, "
            "or name a student.model"
        ) from None
