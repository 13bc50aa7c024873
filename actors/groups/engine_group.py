"""EngineGroup: what the rollout group and the teacher group share, a group of vLLM workers with equal settings."""

from typing import Any

from actors.config import ClusterConfig, EngineConfig
from actors.engine.engine import engine_environment
from actors.environment import worker_environment
from actors.groups.base import Group
from actors.groups.placement import Places


class EngineGroup(Group):
    """A group of vLLM workers. engine: further arguments of every worker. places: reserved places; None to reserve them here."""

    worker_class: type

    def __init__(self, role: str, config: EngineConfig, cluster: ClusterConfig, device: str, places: Places | None, engine: dict[str, Any]):
        self.config, self.device = config, device
        places = places or Places(role, config, cluster, device)
        shares = places.shares

        def environment(index: int) -> dict[str, str]:
            threads = shares[index].threads
            return worker_environment(device, threads) | engine_environment(device, threads, config.tensor_parallel)

        super().__init__(
            role,
            self.worker_class,
            lambda index: engine | {"config": config, "device": device, "threads": shares[index].threads, "cores": shares[index].cores},
            places=places,
            environment=environment,
            start_timeout_s=cluster.start_timeout_s,
            step_timeout_s=cluster.step_timeout_s,
        )
