"""Start and stop a vLLM engine: every argument and environment variable that depends on the device is here.

The functions import vLLM themselves: the import takes seconds, and vLLM reads its environment while it is imported.
"""

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig

from actors.config import EngineConfig
from actors.engine.model_runner import RUNNER_ENVIRONMENT, check_runner
from actors.engine.plugin import WORKER_EXTENSION
from actors.engine.start_errors import memory_problem
from minirl.collector import lasting_imports
from minirl.errors import InputError

if TYPE_CHECKING:
    from vllm import LLM

GIB = 2**30
BREAKABLE_GRAPHS = "VLLM_USE_BREAKABLE_CUDAGRAPH"
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # those of vLLM's attention kernel for CPUs


def engine_environment(device: str, threads: int, tensor_parallel: int) -> dict[str, str]:
    """Environment of a process that holds an engine. threads: of each of its `tensor_parallel` processes.

    Ray workers get it when they start; `start_engine` sets it in any case.
    """
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")}
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the scheduler runs in our process and dies with it
    environment |= RUNNER_ENVIRONMENT | {BREAKABLE_GRAPHS: "0"}  # vLLM would otherwise switch the latter on for some models
    if tensor_parallel > 1:
        environment["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    if device == "cpu":
        # nobind: otherwise all engines on a machine would bind themselves to the same cores.
        environment |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "KMP_BLOCKTIME": "0",
            "OMP_NUM_THREADS": str(threads),
        }
    return environment


def start_engine(
    model: str,
    config: EngineConfig,
    *,
    device: str,
    threads: int,
    max_model_len: int,
    overrides: dict[str, Any],
    mixed: bool = False,
    **arguments: Any,
) -> "LLM":
    """Starts an engine on the model in the directory `model`.

    overrides: entries that replace those of the model's config. mixed: the engine holds two networks. `arguments` go to `vllm.LLM`
    unchanged. Raises InputError, which names our own key, if memory does not suffice; RunError if vLLM runs another model runner than V1.
    """
    check_environment()
    os.environ.update(engine_environment(device, threads, config.tensor_parallel))
    torch.set_num_threads(threads)
    set_num_threads = torch.set_num_threads
    with lasting_imports():
        from vllm import LLM

    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    try:
        engine = LLM(
            model,
            dtype=config.dtype,
            max_model_len=max_model_len,
            hf_overrides=overrides | {"head_dtype": _head_dtype(device)},
            tensor_parallel_size=config.tensor_parallel,
            distributed_executor_backend="mp" if config.tensor_parallel > 1 else "uni",
            use_tqdm_on_load=False,
            generation_config="vllm",  # ignores the sampling defaults in the model's directory
            seed=0,
            worker_extension_cls=WORKER_EXTENSION,
            **_device_arguments(config, device, mixed) | arguments,
        )
    except (ValueError, RuntimeError, MemoryError) as error:
        if problem := memory_problem(error, config, device, max_model_len):
            raise InputError(problem) from None
        raise
    finally:
        torch.set_num_threads = set_num_threads  # vLLM's CPU worker replaces it, process-wide, with a function that refuses
    check_runner(engine)
    return engine


def stop_engine(engine: "LLM") -> None:
    """Ends the engine's processes, if it has any, and frees its memory."""
    engine.llm_engine.engine_core.shutdown()


def check_environment() -> None:
    """Raises InputError if this process's environment asks for breakable CUDA graphs.

    They would capture the mixture's whole step, and with it the teacher share of that moment.
    """
    if os.environ.get(BREAKABLE_GRAPHS) == "1":
        raise InputError(
            f"{BREAKABLE_GRAPHS}=1 would freeze the teacher share of an engine that holds student and teacher into its CUDA graphs; "
            "unset it"
        )


def has_room(engine: "LLM") -> bool:
    """Whether the engine computes all requests that it has, and none waits for a place in its batch or for KV cache."""
    _, waiting = engine.llm_engine.engine_core.engine_core.scheduler.get_request_counts()
    return waiting == 0


def read_model_config(model: str, max_model_len: int) -> PreTrainedConfig:
    """The configuration of a model directory. Raises InputError if the model has fewer than `max_model_len` positions."""
    config = AutoConfig.from_pretrained(model)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < max_model_len:
        raise InputError(
            f"the model {model} reads at most {positions} tokens, but prompt and response may have {max_model_len}; lower "
            "data.max_prompt_tokens or data.max_response_tokens"
        )
    return config


def architecture_of(config: PreTrainedConfig, model: str) -> str:
    """The model class that the directory names. Raises InputError if it names none."""
    architectures: Sequence[str] = config.architectures or ()
    if not architectures:
        raise InputError(f"the config.json of {model} names no architectures; save the model again with transformers")
    return architectures[0]


def check_engine_class(config: PreTrainedConfig, key: str) -> None:
    """Raises InputError, which names the config key `key`, if vLLM can run no class for the model: neither its own nor transformers'.

    It reads vLLM's registry as text, because the driver does not import vLLM, which takes seconds.
    """
    architecture = (config.architectures or ["none"])[0]
    (package,) = importlib.util.find_spec("vllm").submodule_search_locations
    registry = (Path(package) / "model_executor" / "models" / "registry.py").read_text(encoding="utf-8")
    network = getattr(transformers, architecture, None)
    if f'"{architecture}": (' not in registry and not (network is not None and network.is_backend_compatible()):
        raise InputError(
            f"{key}: vLLM has no model class for {architecture}, so it can neither sample nor score; name a model of another family"
        )


def check_head_size(model: str, device: str) -> None:
    """Raises InputError if vLLM's attention kernel for the device cannot run the heads of the model in the directory `model`."""
    config = AutoConfig.from_pretrained(model)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if device == "cpu" and size not in CPU_HEAD_SIZES:
        raise InputError(
            f"the attention heads of the model {model} have {size} elements, and vLLM's kernel for CPUs takes only "
            f"{', '.join(map(str, CPU_HEAD_SIZES))}; name another model, or run on a GPU"
        )


def _head_dtype(device: str) -> str:
    # Float32 logits cost a GPU next to nothing. A CPU would cast the whole head at every pass: a rollout engine then makes half the
    # tokens/s (764 against 1,510), and its log-probs are hardly closer to the learner's (0.127 against 0.136 nats apart), because the
    # layers round to bfloat16 too. The teacher's logits serve only the checksum.
    return "float32" if device == "cuda" else "model"


def _device_arguments(config: EngineConfig, device: str, mixed: bool) -> dict[str, Any]:
    if device == "cpu":
        # Compiling costs more than it gains here. An explicit cache size keeps each engine from claiming a share of the whole memory.
        # Without chunked prefill no prompt is cut into two passes: for a seeded request vLLM would then turn its generator back, and
        # torch's CPU generators cannot do that.
        return {"enforce_eager": True, "kv_cache_memory_bytes": int(config.kv_cache_gib * GIB), "enable_chunked_prefill": False}
    arguments: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_utilization}
    if mixed:
        # A graph of the whole step would freeze the teacher share at its value during capture. Piecewise graphs leave our branch in Python.
        arguments["compilation_config"] = {"cudagraph_mode": "PIECEWISE"}
    return arguments
