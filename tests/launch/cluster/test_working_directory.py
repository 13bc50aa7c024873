"""The working directory of a job: a Python that has only this directory and the requirements runs the program from it."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

from launch.cluster.working_directory import write_working_directory
from launch.config import RunConfig
from launch.job import version_problem
from minirl.config.reader import validate_config
from tests.deadlines import deadline

LOOK = """
import actors, launch.config, minirl, json, sys
from importlib.metadata import entry_points
print(json.dumps([actors.__file__, minirl.__file__, [point.value for point in entry_points(group="vllm.general_plugins")]]))
"""


def test_the_packages_and_the_plugin_are_found_in_it(tmp_path):
    data = tmp_path / "records.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    values = {
        "directory": "runs/x",
        "teacher": {"model": "org/t"},
        "student": {"model": "org/s"},
        "data": {"train": str(data)},
        "stages": {},
    }
    site = tmp_path / "site"
    site.mkdir()
    write_working_directory(validate_config(RunConfig, values), site)
    assert (site / "data" / "0-records.jsonl").read_bytes() == data.read_bytes()
    config = json.loads((site / "config.json").read_text())
    assert config["data"]["train"][0]["source"] == "data/0-records.jsonl"
    assert sum(file.stat().st_size for file in site.rglob("*")) < 2e6, "every node copies it"
    assert not [file for file in site.rglob("*") if file.suffix == ".pyc" or file.name in ("RECORD", "direct_url.json")]

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    look = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=site, env=environment, capture_output=True, text=True, timeout=deadline(30), check=True
    )
    actors, minirl, plugins = json.loads(look.stdout.splitlines()[-1])
    assert actors == f"{site}/actors/__init__.py" and minirl == f"{site}/minirl/__init__.py"
    assert plugins.count("actors.engine.plugin:register") == 1


def test_versions_must_agree():
    here = {"ray": version("ray"), "torch": "2.13.0", "vllm": "0.32.0"}
    assert version_problem(here, here) is None
    assert version_problem({"ray": here["ray"]}, here) is None, "a package that only the cluster has is no problem"
    problem = version_problem(here, here | {"torch": "2.14.1"})
    assert problem.startswith("the job was submitted with torch 2.13.0, and the cluster has torch 2.14.1; install the same version on both")
    assert "the cluster has no vllm" in version_problem(here, {name: here[name] for name in ("ray", "torch")})
