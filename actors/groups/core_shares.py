"""CoreShare: the CPU cores and threads of each worker, divided from the cores of its own node."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.config import ClusterConfig
from actors.node_facts import NodeFacts


@dataclass(frozen=True)
class CoreShare:
    """What one worker uses of its node. threads: of each of its processes. cores: the core ids that it is pinned to; None: all."""

    threads: int
    cores: tuple[int, ...] | None = None


@dataclass(frozen=True)
class RolePlaces:
    """Where a role's workers are. nodes: the node id of each worker. processes: of each worker that compute (`tensor_parallel`)."""

    nodes: Sequence[str]
    processes: int = 1


def share_all_cores(config: ClusterConfig, places: RolePlaces, facts: Mapping[str, NodeFacts]) -> list[CoreShare]:
    """For roles that take turns: each role uses all cores of a node, and its processes on that node divide them."""
    return [
        CoreShare(config.threads_per_worker or max(1, facts[node].usable_cores // (list(places.nodes).count(node) * places.processes)))
        for node in places.nodes
    ]


def divide_cores(config: ClusterConfig, roles: Mapping[str, RolePlaces], facts: Mapping[str, NodeFacts]) -> dict[str, list[CoreShare]]:
    """For roles that compute at the same time (`max_staleness` above 0 on a CPU): pins each role to its own part of each node's cores.

    On a node with a learner, that gets half of the cores. Rollout and teacher divide the rest, or share it if it is a single core. Each
    worker gets different cores if there are enough. Where a cgroup's quota is smaller than the number of cores, the threads follow the
    quota and nothing is pinned: other containers of the machine would be pinned to the same first cores. A role that is alone on a node
    uses all of it.
    """
    shares = {name: share_all_cores(config, places, facts) for name, places in roles.items()}
    for node in {node for places in roles.values() for node in places.nodes}:
        present = [name for name, places in roles.items() if node in places.nodes]
        if len(present) == 1:
            continue
        pins = facts[node].usable_cores == len(facts[node].cores)
        for name, cores in _role_cores(present, facts[node].cores[: facts[node].usable_cores]).items():
            workers = [worker for worker, place in enumerate(roles[name].nodes) if place == node]
            size = max(1, len(cores) // len(workers))  # cores of each worker
            for position, worker in enumerate(workers):
                worker_cores = tuple(cores[(position * size + i) % len(cores)] for i in range(size))
                threads = config.threads_per_worker or max(1, size // roles[name].processes)
                shares[name][worker] = CoreShare(threads, worker_cores if pins else None)
    return shares


def _role_cores(roles: Sequence[str], cores: Sequence[int]) -> dict[str, Sequence[int]]:
    """Divides one node's cores among the roles that are there."""
    engine_count = max(1, len(cores) - len(cores) // 2) if "learner" in roles else len(cores)
    engines, learner = cores[:engine_count], cores[engine_count:] or cores
    middle = -(-len(engines) // 2) if {"rollout", "teacher"} <= set(roles) else 0
    rollout, teacher = engines[:middle] or engines, engines[middle:] or engines
    return {name: {"rollout": rollout, "teacher": teacher, "learner": learner}[name] for name in roles}
