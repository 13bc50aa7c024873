"""The nodes of the Ray cluster that a run can use, with the facts of each, and the device that follows from them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.node_facts import NodeFacts, node_facts
from minirl.errors import InputError, RunError, first_line

_facts_of: dict[str, NodeFacts] = {}  # node id -> facts, which hold as long as the node lives


@dataclass(frozen=True)
class Node:
    """A node: Ray's id and name of it, how many GPUs Ray counts there, and what it finds out about itself."""

    id: str
    name: str
    gpus: float
    facts: NodeFacts


def driver_node() -> Node:
    """The driver's own machine, as the only node of a cluster that the run would start here."""
    facts = node_facts()
    return Node("driver", "this machine", facts.gpus, facts)


def usable_nodes(timeout_s: float) -> list[Node]:
    """All nodes of the connected cluster that have a CPU to reserve. Asks each node once for its facts.

    Raises RunError, which names the node, if a node does not answer within timeout_s.
    """
    entries = [entry for entry in ray.nodes() if entry["Alive"] and entry["Resources"].get("CPU")]
    unknown = [entry for entry in entries if entry["NodeID"] not in _facts_of]
    if unknown and len(entries) == 1 and not os.environ.get("RAY_ADDRESS"):
        _facts_of[entries[0]["NodeID"]] = node_facts()  # the driver's own machine: another process would import torch first
    elif unknown:
        _ask(unknown, timeout_s)
    return [Node(e["NodeID"], f"node {e['NodeName']}", e["Resources"].get("GPU", 0), _facts_of[e["NodeID"]]) for e in entries]


def _ask(entries: list[dict], timeout_s: float) -> None:
    """Runs `node_facts` on the nodes, all at the same time."""
    # Ray hides GPUs from a task that reserves none if the user has set this variable.
    task = ray.remote(num_cpus=0, runtime_env={"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}})(node_facts)
    refs = [task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(entry["NodeID"], soft=False)).remote() for entry in entries]
    for entry, ref in zip(entries, refs, strict=True):
        try:
            _facts_of[entry["NodeID"]] = ray.get(ref, timeout=timeout_s)
        except GetTimeoutError:
            raise RunError(
                f"the node {entry['NodeName']} did not tell what it can compute on within {timeout_s:g} s; look at Ray's logs there, or "
                "raise cluster.start_timeout_s"
            ) from None
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            raise InputError(f"the node {entry['NodeName']} cannot run this project: {first_line(cause)}; install it there") from None


def choose_device(configured: str, nodes: Sequence[Node]) -> tuple[str, str | None]:
    """The device of the run, "cpu" or "cuda", and a sentence for the user if GPUs stay unused.

    A GPU counts if Ray counts it, and torch and vLLM of its node can compute on it. Raises InputError if the configured device is not
    there, or only on some of the nodes with GPUs: Ray would place workers on all of them.
    """
    with_gpus = [node for node in nodes if node.gpus]
    if configured == "cpu" or (configured == "auto" and not with_gpus):
        return "cpu", None
    if not with_gpus:
        known = "".join(f" ({nodes[0].name}: {problem})" for node in nodes[:1] if (problem := node.facts.gpu_problem))
        raise InputError(f"cluster.device is cuda but the Ray cluster has no GPU{known}; set cluster.device: cpu or add a GPU node")
    unable = [node for node in with_gpus if not node.facts.gpus]
    if not unable:
        return "cuda", None
    finding = f"{unable[0].name} has a GPU, but {unable[0].facts.gpu_problem}"
    if configured == "auto" and len(unable) == len(with_gpus):
        return "cpu", f"cluster.device: {finding}, so the run uses the CPU; `make install STACK=cuda` installs what uses the GPU"
    raise InputError(f"cluster.device is {configured}: {finding}; run `make install STACK=cuda` there, or set cluster.device: cpu")


def has_bfloat16(device: str, nodes: Sequence[Node]) -> bool:
    """Whether all nodes that may hold a worker compute bfloat16 natively on the device."""
    return all(device in node.facts.bfloat16 for node in nodes if device == "cpu" or node.gpus)
