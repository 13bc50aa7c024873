"""The vLLM plugin: registers our model classes and weight-transfer engines.

vLLM loads it in each of its processes, through the `vllm.general_plugins` entry point of this distribution.
"""

HOST_MEMORY_TRANSFER, NCCL_TRANSFER = "host_memory", "student_nccl"
WORKER_EXTENSION = "actors.engine.vllm_extension.WorkerExtension"
TRANSFERS = {
    HOST_MEMORY_TRANSFER: ("actors.weights.host_memory", "HostMemoryEngine"),
    NCCL_TRANSFER: ("actors.weights.nccl", "StudentNcclEngine"),
}
MODELS = {
    "BloomForCausalLM": "actors.engine.bloom:BloomForCausalLM",  # in place of vLLM's own class
    "MixtureForCausalLM": "actors.engine.mixture_model:MixtureForCausalLM",
    "ScoringForCausalLM": "actors.engine.scoring_model:ScoringForCausalLM",
}


def register() -> None:
    """Registers our model classes and weight-transfer engines with vLLM. May be called more than once."""
    from vllm import ModelRegistry
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for architecture, location in MODELS.items():
        ModelRegistry.register_model(architecture, location)
    for name, (module, engine) in TRANSFERS.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, engine)
