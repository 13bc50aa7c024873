"""EngineGroup: what the rollout group and the teacher group share, a group of vLLM workers with equal settings."""

from typing import Any

from actors.config import ClusterConfig, EngineConfig
from actors.groups.base import Group
from actors.groups.placement import CoreShare, bundle, share_all_cores, worker_environment


class EngineGroup(Group):
    """A group of vLLM workers. engine: further arguments of every worker. share: the cores of the group; None if the roles take turns."""

    worker_class: type

    def __init__(
        self, role: str, config: EngineConfig, cluster: ClusterConfig, device: str, share: CoreShare | None, engine: dict[str, Any]
    ):
        self.config, self.device = config, device
        share = share or share_all_cores(cluster, config)
        super().__init__(
            role,
            self.worker_class,
            lambda index: (
                engine | {"config": config, "device": device, "threads": share.threads, "cores": share.cores and share.cores[index]}
            ),
            workers=config.workers,
            bundle=bundle(config, device),
            environment=worker_environment(share.threads),
            start_timeout_s=cluster.start_timeout_s,
            step_timeout_s=cluster.step_timeout_s,
        )
