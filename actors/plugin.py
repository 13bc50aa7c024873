"""What vLLM loads in every process of its own, through the `vllm.general_plugins` entry point of this distribution."""

WEIGHT_TRANSFER = "host_memory"
WORKER_EXTENSION = "actors.engine_worker.WorkerExtension"
MODELS = {
    "MixedPolicyForCausalLM": "actors.mixed_policy:MixedPolicyForCausalLM",
    "ScoringForCausalLM": "actors.scoring_model:ScoringForCausalLM",
}


def register() -> None:
    """Make our model classes and our weight-transfer engine known to vLLM. May be called more than once."""
    from vllm import ModelRegistry
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for architecture, location in MODELS.items():
        if architecture not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(architecture, location)
    if WEIGHT_TRANSFER not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(WEIGHT_TRANSFER, "actors.engine_worker", "HostMemoryEngine")
