"""docker/compose.yaml and its GPU addition: the Compose specification accepts them, and together they make one cluster."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deadlines import deadline
from tests.docker.test_images import stages

DOCKER = Path(__file__).parents[2] / "docker"
FILES = ("compose.yaml", "compose.cuda.yaml")


def problems(text: str, tmp_path: Path) -> str:
    """What the Compose specification has against a file; empty if nothing."""
    file = tmp_path / "compose.yaml"
    file.write_text(text)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "--output-format", "text", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=deadline(10))
    return "" if checked.returncode == 0 else checked.stdout + checked.stderr


@pytest.mark.parametrize("name", FILES)
def test_specification_accepts_the_file(name, tmp_path):
    assert problems((DOCKER / name).read_text(), tmp_path) == ""


def test_specification_notices_a_wrong_key(tmp_path):
    assert "shm_sise" in problems((DOCKER / "compose.yaml").read_text().replace("shm_size", "shm_sise"), tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_builds_and_images_are_those_of_the_dockerfile(name):
    for service in yaml.safe_load((DOCKER / name).read_text())["services"].values():
        target = service["build"]["target"]
        assert target in stages() and service["image"] == f"minillm-ray:{target}"


def test_every_node_has_the_token_and_the_shared_volume():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert re.match(r"\$\{RAY_AUTH_TOKEN:\?", service["environment"]["RAY_AUTH_TOKEN"])  # Compose refuses to start without one
        assert service["volumes"] == ["shared:/shared"]
        assert "--object-store-memory=${OBJECT_STORE_BYTES:-3000000000}" in service["entrypoint"]  # fits into shm_size's default
        assert service["shm_size"] == "${SHM_SIZE:-4gb}"
    head, worker = services["head"]["entrypoint"], services["worker"]["entrypoint"]
    assert {"--head", "--num-cpus=0", "--num-gpus=0", "--port=6379"} <= set(head)
    assert f"--address={services['head']['hostname']}:6379" in worker


def test_the_addition_changes_only_services_that_exist():
    services, addition = (yaml.safe_load((DOCKER / name).read_text())["services"] for name in FILES)
    assert set(addition) <= set(services)
    assert "gpus" not in addition["head"] and addition["worker"]["gpus"] == "all"
