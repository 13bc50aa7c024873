"""Benchmark of start-up: measures the seconds from `minirl run` to a stage's first update, and the seconds of a change of stage.

It also gives the CPU seconds of each role in these intervals.

    python -m tests.benchmarks.startup --out start.json [--checkouts DIR ...] [--repeats 3] [key=value ...]

Every run is the real command on `configs/quickstart.yaml`, with so little work that the updates themselves take almost no time. Several
checkouts of the project take turns, so that they share the state of the machine. Compare by ratio within one call.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
MARK = "MINIRL_STARTUP_RUN"  # an environment variable that all processes of a run share
LITTLE_WORK = (
    "data.max_prompt_tokens=64", "data.max_response_tokens=4", "corpus.block_tokens=16", "corpus.blocks_per_update=1",
    "stages.sft_teacher=null", "stages.sft.sequences_per_update=1", "stages.sft.max_updates=2",
    "stages.distill.iterations=1", "stages.distill.prompts_per_iteration=2", "stages.distill.warmup_updates=0",
    "stages.distill.validation_prompts=1", "stages.evaluate.seeds=[1]", "stages.evaluate.prompts=1", "stages.sft.warmup_updates=0",
)  # fmt: skip
ROLES = {"RolloutRayWorker": "rollout", "TeacherRayWorker": "teacher", "LearnerRayWorker": "learner", "minirl run": "driver"}


def cpu_seconds(mark: str) -> dict[str, float]:
    """CPU seconds so far of each role's processes. `ray`: all of Ray's own processes, and workers that have no role yet."""
    seconds: dict[str, float] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                command, times = " ".join(process.cmdline()), process.cpu_times()
                role = next((role for text, role in ROLES.items() if text in command), "ray")
                seconds[role] = seconds.get(role, 0.0) + times.user + times.system
    return seconds


def run(checkout: Path, overrides: list[str], directory: str) -> dict[str, tuple[float, dict[str, float]]]:
    """Runs the command to its end. Returns, for each line of its output up to a colon, when it first came, and the CPU seconds so far."""
    mark, began = f"{time.monotonic_ns()}", time.monotonic()
    command = [str(Path(sys.executable).with_name("minirl")), "run", str(ROOT / "configs" / "quickstart.yaml")]
    process = subprocess.Popen(
        [*command, f"directory={directory}", *LITTLE_WORK, *overrides],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=checkout,
        env=os.environ | {MARK: mark, "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    first, lines = {}, []
    for line in process.stdout:
        lines.append(line)
        event = line.strip() if line.startswith("evaluate: ") else line.partition(": ")[0]
        moment = (time.monotonic() - began, cpu_seconds(mark))
        first.setdefault(event, moment)
    if process.wait():
        raise SystemExit("".join(lines))
    return first


def measure(checkout: Path, overrides: list[str]) -> dict[str, tuple[float, dict[str, float]]]:
    """Seconds of each interval, and the CPU seconds of each role in it."""
    with tempfile.TemporaryDirectory() as directory:
        whole = run(checkout, overrides, f"{directory}/whole")
        alone = run(checkout, [*overrides, "stages.sft=null", "stages.evaluate=null"], f"{directory}/distill")
    nothing = (0.0, {})
    intervals = {
        "start to first update of sft": (nothing, whole["sft 0"]),
        "start to first update of distill": (nothing, alone["distill 0"]),
        "last update of sft to first of distill": (whole["sft 1"], whole["distill 0"]),
        "distill's last checkpoint to evaluation": (
            whole["evaluate: starting the rollout, teacher and learner groups"],
            whole["evaluate: teacher"],
        ),
    }
    return {name: (end[0] - begin[0], _difference(begin[1], end[1])) for name, (begin, end) in intervals.items()}


def _difference(begin: dict[str, float], end: dict[str, float]) -> dict[str, float]:
    """Of processes that ended between, nothing is counted."""
    return {role: max(0.0, seconds - begin.get(role, 0.0)) for role, seconds in sorted(end.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="key=value, as for `minirl run`")
    parser.add_argument("--checkouts", type=Path, nargs="+", default=[ROOT], help="directories of the project, the older one first")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_intermixed_args()
    measured: dict[str, list] = {str(checkout): [] for checkout in arguments.checkouts}
    for _ in range(arguments.repeats):
        for checkout in arguments.checkouts:
            measured[str(checkout)].append(measure(checkout.resolve(), arguments.overrides))
            arguments.out.write_text(json.dumps(measured, indent=1))
    results = list(measured.values())
    table = Table(
        "interval", *[f"seconds ({checkout})" for checkout in measured], "ratio to the first", "CPU seconds by role, last checkout"
    )
    for name in results[0][0]:
        seconds = [median(repeat[name][0] for repeat in repeats) for repeats in results]
        roles = sorted(set().union(*(repeat[name][1] for repeat in results[-1])))
        cpu = {role: median(repeat[name][1].get(role, 0.0) for repeat in results[-1]) for role in roles}
        table.add_row(
            name, *[f"{each:.1f}" for each in seconds], f"{seconds[-1] / seconds[0]:.2f}", ", ".join(f"{r} {s:.1f}" for r, s in cpu.items())
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
