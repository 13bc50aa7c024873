"""docker/Dockerfile: hadolint accepts it, and its packages and files are enough for `make install`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.install import prerequisites
from tests.deadlines import deadline

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")
TARGETS = ("cpu", "cuda")
# Debian's packages of the prerequisites that the base image has: python:3.11 is built from source, with headers and venv.
IN_BASE_IMAGE = {"cpu": {"python3-dev", "python3-venv"}, "cuda": {"libnuma1"}}  # the CUDA stack does not use libnuma


def stages() -> dict[str, list[tuple[str, str]]]:
    """Name of each stage -> its instructions, as (keyword, arguments)."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.M)
    found: dict[str, list[tuple[str, str]]] = {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        keyword, _, arguments = line.partition(" ")
        if keyword == "FROM":
            instructions = found.setdefault(arguments.split()[-1], [])
        if keyword:
            instructions.append((keyword, arguments))
    return found


def run_lines(stage: str) -> list[str]:
    """The shell commands of a stage, without the options of RUN."""
    return [re.sub(r"^(--\S+ )*", "", arguments) for keyword, arguments in stages()[stage] if keyword == "RUN"]


def lint(text: str) -> str:
    return subprocess.run([HADOLINT, "-"], input=text, capture_output=True, text=True, timeout=deadline(10)).stdout


def test_hadolint_accepts_the_dockerfile():
    assert lint(DOCKERFILE.read_text()) == ""


def test_hadolint_notices_a_problem():
    assert "DL3027" in lint(DOCKERFILE.read_text().replace("apt-get update", "apt update"))


@pytest.mark.parametrize("target", TARGETS)
def test_debian_packages_are_the_prerequisites_of_the_installation(target):
    """Each sentence of launch/install/prerequisites.py that advises `apt-get install` names a package that the image has."""
    advised = set(re.findall(r"apt-get install ([\w+.-]*[\w+])", Path(prerequisites.__file__).read_text()))
    assert advised == {"python3-venv", "python3-dev", "make", "g++", "libnuma1"}
    packages = re.search(r"apt-get install -y --no-install-recommends (.*?) &&", run_lines(target)[0])[1].split()
    assert advised - IN_BASE_IMAGE[target] <= set(packages)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_make_install_installs_python_packages(target):
    """CI runs the same target on a clean checkout, so what an image does is exercised there."""
    assert run_lines(target)[1:] == [f"make install STACK={target}"]


def copy_image_files(target: str, tree: Path) -> None:
    """Fills `tree` as the COPY instructions fill the image's working directory."""
    for keyword, arguments in [*stages()["program"], *stages()[target]]:
        if keyword == "COPY" and not arguments.startswith("--from=program"):
            *sources, destination = arguments.split()
            for source in sources:
                path = tree / destination.strip("/") / ("" if (ROOT / source).is_dir() else source)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, path, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copyfile(ROOT / source, path)


@pytest.mark.slow
def test_the_files_of_the_cpu_image_are_enough_for_its_install_step(tmp_path):
    """Runs the image's install step in a tree that holds only what the image holds, with a new virtual environment.

    The environment sees the packages of this one, so pip finds every pinned version and downloads nothing. All else is real: the checks
    before and after, the build of this distribution, and its command.
    """
    tree = tmp_path / "image"
    tree.mkdir()
    copy_image_files("cpu", tree)
    packages = tmp_path / "packages.pth"
    packages.write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\nset -e\n"
        f'if [ "$1 $2" != "-m venv" ]; then exec {sys.executable} "$@"; fi\n'
        f"{sys.executable} -m venv --without-pip $3\n"
        f"cp {packages} $3/lib/python*/site-packages/\n"
    )
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VENV", "MAKEFLAGS", "MAKELEVEL")}
    environment |= {"PYTHON": str(python), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    (install,) = [line for line in run_lines("cpu") if "apt-get" not in line]
    installed = subprocess.run(["sh", "-c", install], cwd=tree, env=environment, capture_output=True, text=True, timeout=deadline(50))
    assert installed.returncode == 0, installed.stdout + installed.stderr
    new = tree / ".venv" / "bin"
    print_file = [new / "python", "-c", "import launch.cli; print(launch.cli.__file__)"]
    printed = subprocess.run(print_file, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=deadline(20))
    assert printed.stdout.strip() == str(tree / "launch" / "cli.py"), printed.stderr
    command = subprocess.run([new / "minirl", "--help"], cwd=tree, env=environment, capture_output=True, text=True, timeout=deadline(20))
    assert command.returncode == 0 and "submit" in command.stdout, command.stderr
