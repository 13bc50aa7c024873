"""Placement: the Ray cluster of a run, and the places of the groups' workers in it, with their shares of the cores."""

import os
import re
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from typing import Any

import ray
from ray.exceptions import AuthenticationError, GetTimeoutError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster_access import WHERE_A_TOKEN_BELONGS, check_listens, token_exists
from actors.config import ClusterConfig, EngineConfig, LearnerConfig
from actors.groups.core_shares import CoreShare, RolePlaces, divide_cores, share_all_cores
from actors.groups.nodes import usable_nodes
from actors.node_facts import NodeFacts
from minirl.errors import InputError, first_line

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextmanager
def cluster(logical_cpus: int, object_store_bytes: int) -> Iterator[None]:
    """Connects to the Ray cluster at RAY_ADDRESS, or starts one here. On exit, disconnects and stops a cluster that it started.

    Raises InputError, with Ray's own first line, if Ray does not start.
    """
    sigterm_handler = signal.getsignal(signal.SIGTERM)  # `ray.init` replaces it
    address = os.environ.get("RAY_ADDRESS")
    new_cluster = {"num_cpus": logical_cpus, "object_store_memory": object_store_bytes, "include_dashboard": False}
    if address and (match := re.fullmatch(r"\[?(.+?)\]?:(\d+)", address)):
        check_listens(match[1], int(match[2]), "unset RAY_ADDRESS to start a cluster here, or set it to the address of one that runs")
    try:
        # local: start a new cluster; do not join one that another `ray start` left on this machine
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else new_cluster))
    except Exception as error:  # Ray raises errors of many types, and what it had started until then would stay
        ray.shutdown()
        raise InputError(_why_ray_does_not_start(error, address)) from None
    finally:
        with suppress(ValueError):  # raised outside the main thread
            signal.signal(signal.SIGTERM, sigterm_handler)
    try:
        yield
    finally:
        ray.shutdown()


def _why_ray_does_not_start(error: Exception, address: str | None) -> str:
    line = first_line(error)
    if address and isinstance(error, ConnectionError | AuthenticationError):
        token = "with the token that it found" if token_exists(os.environ) else "without a token"
        return (
            f"the Ray cluster at RAY_ADDRESS={address} listens but does not accept this command {token}; give the token that the cluster "
            f"requires ({WHERE_A_TOKEN_BELONGS}), and the port of its head (6379 by default), not of its dashboard"
        )
    if "AF_UNIX" in line:
        return (
            f"Ray's directory for sockets has too long a path ({line}); set RAY_TMPDIR to a short one such as /tmp, or shorten TMPDIR = "
            f"{os.environ.get('RAY_TMPDIR') or tempfile.gettempdir()}"
        )
    if isinstance(error, OSError):
        return f"Ray does not start: {line}; set RAY_TMPDIR to a directory that can be written and has room"
    joined = f"RAY_ADDRESS={address}" if address else "a new cluster on this machine"
    return f"Ray does not start with {joined}: {line}; look at Ray's logs under {os.environ.get('RAY_TMPDIR') or tempfile.gettempdir()}/ray"


def bundle(config: EngineConfig | LearnerConfig, device: str) -> dict[str, float]:
    """The Ray resources that one worker reserves. A tensor-parallel engine is one bundle, so that all its devices are on one node."""
    devices = getattr(config, "tensor_parallel", 1)
    reserved: dict[str, float] = {"CPU": config.cpus_per_worker}
    return reserved | {"GPU": devices} if device == "cuda" else reserved


class Places:
    """Places for a group's workers in the Ray cluster, reserved until `release`.

    role: the group's name in messages. config: the section with its number of workers and what each reserves. role_places: the node of
    each worker. shares: what each worker uses of its node's cores, as if the role took turns with the others; `reserved_together`
    replaces them. Raises InputError if the cluster has no room.
    """

    shares: list[CoreShare]

    def __init__(self, role: str, config: EngineConfig | LearnerConfig, cluster_config: ClusterConfig, device: str):
        self.bundle, self.workers = bundle(config, device), config.workers
        self._group = placement_group([dict(self.bundle) for _ in range(self.workers)], strategy="PACK")
        try:
            ray.get(self._group.ready(), timeout=min(60.0, cluster_config.start_timeout_s))
        except GetTimeoutError:
            self.release()
            needed = ", ".join(f"{self.workers} x {amount:g} {kind}" for kind, amount in self.bundle.items())
            raise InputError(f"the Ray cluster has no room for the {role} group ({needed}); lower {role}.workers or add nodes") from None
        node_of = placement_group_table(self._group)["bundles_to_node_id"]
        self.role_places = RolePlaces([node_of[worker] for worker in range(self.workers)], getattr(config, "tensor_parallel", 1))
        self.shares = share_all_cores(cluster_config, self.role_places, facts_of_nodes(cluster_config))

    def of_worker(self, index: int) -> dict[str, Any]:
        """Ray's options that put one worker into its place."""
        strategy = PlacementGroupSchedulingStrategy(self._group, index)
        return {"num_cpus": self.bundle["CPU"], "num_gpus": self.bundle.get("GPU", 0), "scheduling_strategy": strategy}

    def release(self) -> None:
        """Returns the resources to the cluster. Ray ends workers that are still there. A second call does nothing."""
        remove_placement_group(self._group)


@contextmanager
def reserved_together(
    roles: Mapping[str, Sequence[tuple[str, EngineConfig | LearnerConfig]]], config: ClusterConfig, device: str
) -> Iterator[dict[str, list[Places]]]:
    """Reserves places for roles that compute at the same time on CPUs. Their shares divide the cores of each node. Releases the places at
    the end of the block.

    roles: "rollout", "teacher" or "learner" -> name in messages and section of each of the role's groups; none for a role without groups.
    """
    with ExitStack() as stack:
        places: dict[str, list[Places]] = {role: [] for role in roles}
        for role, groups in roles.items():
            for name, section in groups:
                places[role].append(Places(name, section, config, device))
                stack.callback(places[role][-1].release)
        role_places = {role: _joined([group.role_places for group in groups]) for role, groups in places.items() if groups}
        for role, shares in divide_cores(config, role_places, facts_of_nodes(config)).items():
            remaining_shares = iter(shares)
            for group in places[role]:
                group.shares = list(islice(remaining_shares, group.workers))
        yield places


def _joined(groups: Sequence[RolePlaces]) -> RolePlaces:
    """The workers of all groups of one role, group after group. All groups have the same number of processes a worker."""
    return RolePlaces([node for group in groups for node in group.nodes], groups[0].processes)


def facts_of_nodes(config: ClusterConfig) -> dict[str, NodeFacts]:
    """Node id -> facts."""
    return {node.id: node.facts for node in usable_nodes(config.start_timeout_s)}
