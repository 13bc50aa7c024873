"""Settings for DeepSpeed and transformers, derived from the learner's configuration."""

from transformers import PretrainedConfig
from transformers.utils import is_flash_attn_2_available

from actors.config import LearnerConfig
from minirl.config.stages import OptimizerStageConfig
from minirl.errors import InputError
from minirl.model.attention import kernel_refusal


def deepspeed_config(config: LearnerConfig, training: OptimizerStageConfig | None) -> dict:
    """DeepSpeed's settings. training None: no optimizer.

    `gradient_accumulation_steps` is 1: the learner sets accumulation boundaries itself, because the number of micro-batches varies.
    """
    zero: dict = {"stage": config.zero_stage}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    settings: dict = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "steps_per_print": 2**31,
    }
    if training is not None:
        settings["gradient_clipping"] = training.max_grad_norm or 0.0
        parameters: dict = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
        if config.optimizer == "adamw":
            parameters["betas"] = training.betas
            parameters |= {} if config.offload_optimizer else {"torch_adam": True, "fused": True}
        settings["optimizer"] = {"type": {"adamw": "AdamW", "sgd": "SGD"}[config.optimizer], "params": parameters}
    return settings


def attention_kernels(config: LearnerConfig, device: str, network: PretrainedConfig) -> list[str]:
    """The attention kernels of transformers to try for this network, the fastest first; one alone if the config names it.

    Raises InputError if the kernel that the config names cannot run or does not compute this network.
    """
    flash = device == "cuda" and config.dtype == "bfloat16" and is_flash_attn_2_available()
    if config.attention == "flash_attention_2" and not flash:
        raise InputError(
            "learner.attention: flash_attention_2 needs a GPU, learner.dtype: bfloat16 and the package flash-attn; "
            "install it, or set learner.attention: auto"
        )
    if config.attention != "auto":
        if refusal := kernel_refusal(network, config.attention):
            raise InputError(f"learner.attention: {refusal}; set learner.attention: auto")
        return [config.attention]
    kernels = (*(["flash_attention_2"] if flash else []), "sdpa", "eager")
    return [kernel for kernel in kernels if kernel_refusal(network, kernel) is None]
