"""The nodes of a cluster: the device that follows from them, and workers with the threads and cores of their own node."""

import json
import subprocess
import sys

import pytest

from actors.groups.nodes import Node, choose_device, has_bfloat16
from actors.node_facts import NodeFacts
from minirl.errors import InputError
from tests.deadlines import deadline

CPU_BUILD = "torch 2.13.0+cpu is built for CPUs"


def node(name: str = "node a", *, ray_gpus: float = 0, gpus: int = 0, problem: str | None = None, bfloat16: tuple = ()) -> Node:
    return Node(name, name, ray_gpus, NodeFacts(gpus, problem, frozenset(bfloat16), (0, 1), 2))


def test_the_device_needs_rays_count_and_torchs_word():
    able, unable, plain = node(ray_gpus=2, gpus=2), node("node b", ray_gpus=1, problem=CPU_BUILD), node("node c", problem=CPU_BUILD)
    assert choose_device("auto", [able, plain]) == choose_device("cuda", [able]) == ("cuda", None)
    assert choose_device("auto", [plain]) == choose_device("cpu", [able, unable]) == ("cpu", None)
    device, notice = choose_device("auto", [unable, plain])
    assert device == "cpu"
    assert notice.startswith(f"cluster.device: node b has a GPU, but {CPU_BUILD}, so the run uses the CPU;") and "\n" not in notice


@pytest.mark.parametrize(
    ("configured", "nodes", "sentence"),
    [
        ("cuda", [node("node b", ray_gpus=1, problem=CPU_BUILD)], f"cluster.device is cuda: node b has a GPU, but {CPU_BUILD}; run `make"),
        # Ray would place workers on both nodes, so neither device fits all of them.
        (
            "auto",
            [node(ray_gpus=1, gpus=1), node("node b", ray_gpus=1, problem=CPU_BUILD)],
            "cluster.device is auto: node b has a GPU, but",
        ),
        ("cuda", [node(problem=CPU_BUILD)], f"cluster.device is cuda but the Ray cluster has no GPU (node a: {CPU_BUILD}); set cluster."),
        ("cuda", [node()], "cluster.device is cuda but the Ray cluster has no GPU; set cluster.device: cpu or add a GPU node"),
    ],
)
def test_a_device_that_is_not_there_is_refused_in_one_sentence(configured, nodes, sentence):
    with pytest.raises(InputError) as caught:
        choose_device(configured, nodes)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_bfloat16_must_be_native_on_all_nodes_that_may_hold_a_worker():
    new, old = node(bfloat16=("cpu",)), node("node b")
    assert has_bfloat16("cpu", [new, new]) and not has_bfloat16("cpu", [new, old])
    ampere, volta = node(ray_gpus=1, gpus=1, bfloat16=("cuda",)), node(ray_gpus=1, gpus=1, bfloat16=("cpu",))
    assert has_bfloat16("cuda", [ampere, old])  # no worker goes to the node without a GPU
    assert not has_bfloat16("cuda", [ampere, volta])


# Real Ray has two nodes with two CPUs each, so three workers need both. The script asks the nodes for their facts, then replaces the
# facts by those of other machines. It runs in a separate process, because the test suite has a cluster in this one.
TWO_NODES = """
import json, os, sys
import ray
from ray.cluster_utils import Cluster
from actors.config import ClusterConfig, EngineConfig, LearnerConfig
from actors.groups import nodes
from actors.groups.engine_group import EngineGroup
from actors.groups.placement import cluster, reserved_together
from actors.node_facts import NodeFacts, node_facts
from tests.deadlines import wait_until

class Probe:
    def __init__(self, **settings):
        self.settings = settings
    def report(self):
        environment = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "DS_ACCELERATOR")}
        return {"node": ray.get_runtime_context().get_node_id(), "threads": self.settings["threads"], **environment}

class ProbeGroup(EngineGroup):
    worker_class = Probe

def facts(cores, usable=None):
    return NodeFacts(0, None, frozenset(), tuple(cores), usable or len(cores))

seconds, report = float(sys.argv[1]), {}
options = {"num_cpus": 2, "object_store_memory": 2**27}
machines = Cluster(initialize_head=True, head_node_args=options | {"include_dashboard": False})
other = machines.add_node(**options)
os.environ["RAY_ADDRESS"] = machines.address
config = ClusterConfig(start_timeout_s=seconds, step_timeout_s=seconds)
with cluster(1, 2**27):
    asked = nodes.usable_nodes(seconds)
    report["asked"] = len(asked) == 2 and all(node.facts == node_facts() for node in asked)
    first, second = (node.id for node in asked)
    nodes._facts_of |= {first: facts(range(12)), second: facts(range(64), usable=6)}
    group = ProbeGroup("rollout", EngineConfig(workers=3), config, "cpu", None, {})
    group.wait_started()
    reports = group.call("report")
    group.stop()
    report["workers"] = [{"node": "first" if r.pop("node") == first else "second", **r} for r in reports]
    roles = {"rollout": [("rollout", EngineConfig(workers=3))], "teacher": [], "learner": [("learner", LearnerConfig())]}
    with reserved_together(roles, config, "cpu") as places:
        report["together"] = [
            ["first" if node == first else "second", share.threads, share.cores and len(share.cores)]
            for group in (places["rollout"][0], places["learner"][0]) for node, share in zip(group.role_places.nodes, group.shares)
        ]
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 4, 60)
    report["free"] = ray.available_resources().get("CPU", 0)
machines.shutdown()
print(json.dumps(report))
"""


@pytest.mark.slow
def test_workers_on_several_nodes_have_the_threads_of_their_own_node(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    seconds = deadline(60)
    process = subprocess.run([sys.executable, "-c", TWO_NODES, str(seconds)], capture_output=True, text=True, timeout=4 * seconds)
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["asked"] and report["free"] == 4
    cores, workers = {"first": 12, "second": 6}, [worker["node"] for worker in report["workers"]]
    assert sorted(map(workers.count, cores)) == [1, 2]
    for worker in report["workers"]:
        threads = cores[worker["node"]] // workers.count(worker["node"])
        assert worker["threads"] == threads and worker["OMP_NUM_THREADS"] == worker["MKL_NUM_THREADS"] == str(threads)
        assert worker["DS_ACCELERATOR"] == "cpu"
    *rollout, (learner_node, learner_threads, learner_pins) = report["together"]
    shared = [share for share in rollout if share[0] == learner_node]
    alone = [share for share in rollout if share[0] != learner_node]
    assert len(shared) == 1 and len(alone) == 2
    half = cores[learner_node] // 2
    assert shared == [[learner_node, half, half if learner_node == "first" else None]]
    assert (learner_threads, learner_pins) == (half, half if learner_node == "first" else None)
    assert all(share[1:] == [cores[share[0]] // 2, None] for share in alone)
