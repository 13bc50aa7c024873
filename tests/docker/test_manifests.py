"""docker/kubernetes: KubeRay's own schemas accept the manifests, and their groups hold the run that they start."""

import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from launch.cluster.jobs import DIRECTORY, STOP_WAIT
from launch.config import RunConfig
from minirl.config.reader import read_config
from tests.docker.test_images import stages

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "docker" / "kubernetes"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"
needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="KubeRay's CustomResourceDefinitions are not beside this repository")
ROLES = ("rollout", "teacher", "learner")


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())


@cache
def schema(name: str) -> dict[str, Any]:
    """KubeRay's schema of version v1 of "raycluster" or "rayjob". A field that it does not name is an error, as for `kubectl apply`."""
    text = (SCHEMAS / f"ray.io_{name}s.yaml").read_text()
    definition = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    return closed(version["schema"]["openAPIV3Schema"])


def closed(node: Any) -> Any:
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: closed(value) for key, value in node.items()}
    if result.get("type") == "object" and "properties" in result and not result.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def errors(document: dict[str, Any], name: str) -> list[str]:
    body = {key: value for key, value in document.items() if key != "metadata"}  # Kubernetes' own part
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema(name)).iter_errors(body)]


@needs_schemas
@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberay_accepts_the_manifest(name):
    assert errors(manifest(name), name) == []


@needs_schemas
def test_kuberays_schema_notices_mistakes():
    document = manifest("raycluster")
    group = document["spec"]["workerGroupSpecs"][0]
    group["replica"] = group.pop("replicas")
    group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = "96 GB"
    del document["spec"]["workerGroupSpecs"][1]["groupName"]
    findings = "\n".join(errors(document, "raycluster"))
    assert all(word in findings for word in ("'replica' was unexpected", "'96 GB'", "'groupName' is a required property"))


@needs_schemas
def test_kubernetes_accepts_the_volume_claim():
    """A pod template may hold the specification of a claim, so KubeRay's schema holds that of Kubernetes."""
    spec = schema("raycluster")["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]["template"]["properties"]["spec"]
    claim = spec["properties"]["volumes"]["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    assert list(Draft202012Validator(claim).iter_errors(manifest("storage")["spec"])) == []


def test_the_job_starts_the_cluster_of_the_other_manifest():
    assert manifest("rayjob")["spec"]["rayClusterSpec"] == manifest("raycluster")["spec"]


def test_the_head_has_no_gpus_and_holds_no_workers():
    head = manifest("raycluster")["spec"]["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_each_role_has_a_group_that_advertises_its_resource():
    """One unit of the role's custom resource for each GPU of the node."""
    groups = {group["groupName"]: group for group in manifest("raycluster")["spec"]["workerGroupSpecs"]}
    assert tuple(groups) == ROLES
    for role, group in groups.items():
        gpus = group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
        # KubeRay puts the value into a shell command. It also strips quotes and reads JSON; where it cannot, the node gets no GPUs.
        value = group["rayStartParams"]["resources"]
        assert json.loads(*shlex.split(value)) == json.loads(value.strip("'\"` ")) == {f"minirl_{role}": gpus}


def test_every_pod_mounts_the_shared_volume_and_shared_memory():
    spec = manifest("raycluster")["spec"]
    claim = manifest("storage")["metadata"]["name"]
    for template in (spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])):
        (container,) = template["spec"]["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"] == claim
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_ray_is_the_version_of_the_images():
    assert f"ray=={manifest('raycluster')['spec']['rayVersion']}" in (ROOT / "requirements-cpu.txt").read_text().splitlines()


def test_the_job_runs_a_config_of_the_image_that_its_groups_hold():
    spec = manifest("rayjob")["spec"]
    command, verb, config, *overrides = shlex.split(spec["entrypoint"])
    (work_directory,) = [arguments for keyword, arguments in stages()["cuda"] if keyword == "WORKDIR"]
    assert (command, verb) == ("minirl", "run") and config.startswith(f"{work_directory}/configs/")
    run = read_config(RunConfig, ROOT / Path(config).relative_to(work_directory), overrides)
    assert spec["metadata"] == {DIRECTORY: run.directory} and run.directory.startswith("/shared/")
    assert int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"][STOP_WAIT]) >= 60
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        role = getattr(run, group["groupName"])
        gpus_of_worker, limits = getattr(role, "tensor_parallel", 1), group["template"]["spec"]["containers"][0]["resources"]["limits"]
        workers_of_node = min(limits["nvidia.com/gpu"] // gpus_of_worker, limits["cpu"] // role.cpus_per_worker)
        assert workers_of_node * group["replicas"] == role.workers, group["groupName"]
