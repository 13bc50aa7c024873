"""Attention kernels of transformers: which of them compute a model, and the check of a kernel against the eager one."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

# Largest difference of a token's attention output from the eager kernel's, relative to its size. Measured on a CPU: in float32 at most
# 1e-6; in bfloat16 0.02 (SmolLM2 135M) to 0.05 (random weights with sharp attention). A window that is ignored shows as 0.1 four tokens
# beyond its edge and as 0.5 fifty tokens beyond it.
KERNEL_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.08}
CHECK_BYTES = 4 * 2**30  # memory for the eager kernel's scores in a check on a CPU; on a GPU it is half of what is free
SCORE_BYTES = 12  # of one head and one pair of tokens: scores, softmax in float32, weights


def kernel_refusal(config: PretrainedConfig, kernel: str) -> str | None:
    """Why `kernel` ("eager", "sdpa" or "flash_attention_2") does not compute models of this config; None if it may.

    What no kernel's interface shows (a wrong window, a bias left out) is left to `kernel_gap`.
    """
    config = config.get_text_config()
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    name, soft_cap = model_class.__name__, getattr(config, "attn_logit_softcapping", None)
    if kernel == "eager":
        if config.model_type == "falcon" and config.alibi:
            return f"transformers' eager kernel of {name} adds the ALiBi bias twice"
        return None
    if kernel == "sdpa":
        if not model_class._supports_sdpa:
            return f"transformers has no sdpa kernel for {name}"
        return f"the sdpa kernel leaves out the attention soft-cap of {name}" if soft_cap else None
    if not model_class._supports_flash_attn:
        return f"transformers has no flash attention for {name}"
    only = getattr(model_class, "_compatible_flash_implementations", None)
    if only and kernel not in only:
        return f"transformers runs {name}, of flash attention, only with {' or '.join(only)}"
    if not model_class._can_set_attn_implementation():  # such a family reads the kernel when it is built
        return f"the flash attention of {name} cannot be compared with its eager kernel"
    return f"the installed flash-attn leaves out the attention soft-cap of {name}" if soft_cap and not _flash_caps() else None


def default_kernel(config: PretrainedConfig) -> str:
    """The kernel that runs everywhere: sdpa if it computes this model, else eager."""
    return "eager" if kernel_refusal(config, "sdpa") else "sdpa"


def use_kernel(model: PreTrainedModel, kernel: str) -> None:
    """Switches the model to the kernel, in place."""
    if model.config._attn_implementation == kernel:
        return
    if model._can_set_attn_implementation():
        model.set_attn_implementation(kernel)
    else:  # Falcon, whose layers read the config in each pass
        model.config._attn_implementation = kernel


@torch.no_grad()
def kernel_gap(model: PreTrainedModel, kernel: str, tokens: int) -> float:
    """The largest difference of any token's attention output from the eager kernel's, relative to its size, over all layers.

    Runs one random sequence of `tokens` tokens through the model twice, without dropout, and leaves the model with `kernel`. In the second
    pass each layer gets the input that it had in the first, so that rounding does not add up over layers. Fewer tokens if the model reads
    fewer or if the eager kernel's scores would not fit into memory. 0 for the eager kernel, and where the eager kernel itself is refused.
    Under ZeRO-3 all ranks must call it.
    """
    if kernel == "eager" or kernel_refusal(model.config, "eager"):
        use_kernel(model, kernel)
        return 0.0
    config = model.config.get_text_config()
    tokens = min(tokens, getattr(config, "max_position_embeddings", None) or tokens)
    tokens = min(tokens, int((_check_bytes(model.device) / (SCORE_BYTES * config.num_attention_heads)) ** 0.5))
    ids = torch.randint(config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0)).to(model.device)
    eager_outputs: dict[nn.Module, Tensor] = {}
    gaps: list[Tensor] = []

    def record(module: nn.Module, _: Any, output: Any) -> None:
        eager_outputs[module] = output if torch.is_tensor(output) else output[0]

    def compare(module: nn.Module, _: Any, output: Any) -> Any:
        eager = eager_outputs.pop(module)
        gaps.append(_relative_gap(output if torch.is_tensor(output) else output[0], eager))
        return eager if torch.is_tensor(output) else (eager, *output[1:])

    was_training = model.training
    model.eval()
    for each, hook in (("eager", record), (kernel, compare)):
        use_kernel(model, each)
        _run_with_hooks(model, ids, hook)
    model.train(was_training)
    return float(torch.stack(gaps).max().nan_to_num(nan=float("inf")))


def _run_with_hooks(model: PreTrainedModel, ids: Tensor, hook: Callable[..., Any]) -> None:
    """A forward pass in which `hook` sees the output of each attention layer, or of the whole network if it has no such layers."""
    layers = _outermost_attention(model.base_model) or [model.base_model]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        model.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def _outermost_attention(module: nn.Module) -> list[nn.Module]:
    """The modules whose class is named "...Attention...", as transformers names them, without those inside another one."""
    layers = []
    for child in module.children():
        layers += [child] if "Attention" in type(child).__name__ else _outermost_attention(child)
    return layers


def _relative_gap(output: Tensor, eager: Tensor) -> Tensor:
    """Largest difference over tokens, relative to the token's output or to the median token's, if that is larger."""
    sizes = eager.float().flatten(0, -2).norm(dim=-1)
    differences = (output.float() - eager.float()).flatten(0, -2).norm(dim=-1)
    return (differences / torch.maximum(sizes, sizes.median()).clamp(min=torch.finfo(torch.float32).tiny)).max()


def _check_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else CHECK_BYTES


def _flash_caps() -> bool:
    """Whether the installed flash-attn (2.6 and newer) has soft-caps."""
    if not is_flash_attn_2_available():
        return True  # nothing installed, nothing to refuse
    from flash_attn import flash_attn_func

    return "softcap" in inspect.signature(flash_attn_func).parameters
