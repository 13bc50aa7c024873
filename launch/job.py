"""The entry point of a job: checks that the cluster has the versions of the submitting machine, then does `minirl run`."""

import json
import os
import sys
from pathlib import Path

from actors.cluster_access import use_token
from launch.cluster.working_directory import CONFIG, VERSIONS, installed_versions
from launch.progress import PROGRESS_LINES


def version_problem(submitted: dict[str, str], here: dict[str, str]) -> str | None:
    """What differs if this node lacks a package, or has another version of one than the machine that submitted the job."""
    for package, version in submitted.items():
        if here.get(package) != version:
            there = f"{package} {here[package]}" if package in here else f"no {package}"
            return (
                f"the job was submitted with {package} {version}, and the cluster has {there}; install the same version on both "
                f"(the cluster's Python is {sys.executable}; `minirl submit --python` names another)"
            )
    return None


def main() -> None:
    """Runs the config of the working directory. Exit codes are those of `minirl run`."""
    use_token()
    if problem := version_problem(json.loads(Path(VERSIONS).read_text()), installed_versions()):
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    os.environ[PROGRESS_LINES] = "1"
    sys.argv[1:] = ["run", CONFIG]
    from launch.cli import main as minirl

    minirl()


if __name__ == "__main__":
    main()
