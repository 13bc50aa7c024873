"""What vLLM loads in every process of its own, through the `vllm.general_plugins` entry point of this distribution."""

WEIGHT_TRANSFER, NCCL_TRANSFER = "host_memory", "student_nccl"
WORKER_EXTENSION = "actors.engine.vllm_extension.WorkerExtension"
TRANSFERS = {
    WEIGHT_TRANSFER: ("actors.weights.host_memory", "HostMemoryEngine"),
    NCCL_TRANSFER: ("actors.weights.nccl", "StudentNcclEngine"),
}
MODELS = {
    "MixedPolicyForCausalLM": "actors.engine.mixed_policy:MixedPolicyForCausalLM",
    "ScoringForCausalLM": "actors.engine.scoring_model:ScoringForCausalLM",
}


def register() -> None:
    """Make our model classes and our weight-transfer engines known to vLLM. May be called more than once."""
    from vllm import ModelRegistry
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for architecture, location in MODELS.items():
        if architecture not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(architecture, location)
    for name, (module, engine) in TRANSFERS.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, engine)
