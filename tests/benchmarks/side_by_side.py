"""Benchmark of minillm-ray side by side with TRL's MiniLLM trainer and a plain single-process loop.

    python -m tests.benchmarks.side_by_side --pair smollm2 tiny --dtype bfloat16 float32 --steps 5 --contestants ours trl plain

All contestants have the same machine, models, prompts, lengths and threads. They run at the same time and take one update each in turn, so
that a change in the machine's speed affects all of them. `--quality N` continues to N updates and then measures the reverse KL of students
that the contestants exported on the way. Where TRL takes part, the others weight the policy gradient as it does.

Each pair and dtype is a part with files of its own. A part that was finished at the same commit with the same options is not measured
again, so that the same command continues after an interruption.
"""

import argparse
import json
import subprocess
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from rich.console import Console

from actors.node_facts import node_facts
from launch.progress import rich_table
from minirl.bench.machine import processor_name, vector_instructions
from minirl.tables import Table
from tests.benchmarks import comparison
from tests.benchmarks.comparison import ContestantResult, Point
from tests.benchmarks.contestants import MODULES, ROOT, ContestantProcess, python_of
from tests.benchmarks.pairs import PAIRS, make_job
from tests.benchmarks.protocol import Job

WARM_UP = 1
UNCOMMITTED = "with changes not committed"


@dataclass(frozen=True)
class ExportedStudent:
    """A student after some updates. seconds: its training time, without exports."""

    updates: int
    seconds: float
    directory: Path


class SideBySideRun:
    """One comparison. exports: the numbers of updates after which every contestant exports its student."""

    def __init__(self, arguments: argparse.Namespace, console: Console):
        self.arguments, self.console = arguments, console
        self.directory = arguments.out / f"{arguments.pair}-{arguments.dtype}"
        self.updates = max(WARM_UP + arguments.steps, arguments.quality)
        parts = arguments.quality_points
        self.exports = {arguments.quality * part // parts for part in range(1, parts + 1)} if arguments.quality else set()
        self.job = make_job(
            arguments.pair, self.updates, arguments.threads, self.directory, arguments.dtype, arguments.policy_gradient_weight
        )
        self.file = self.directory / "job.json"
        self.job.write(self.file)
        self.exported: dict[str, list[ExportedStudent]] = {}

    def run(self) -> dict[str, ContestantResult]:
        """Start all contestants, take all updates in rounds, and return the result of each contestant."""
        with ExitStack() as started:
            contestants = []
            for name in self.arguments.contestants:
                self.console.print(f"starting {name}")
                contestant = ContestantProcess(name, self.file, self.arguments.threads, python_of(name))
                started.callback(contestant.stop)
                contestant.wait_ready()
                contestants.append(contestant)
            idle = {contestant.name: 0.0 for contestant in contestants}
            for number in range(1, self.updates + 1):
                self._round(number, contestants, idle)
        timed = {contestant.name: contestant.updates[WARM_UP:] for contestant in contestants}
        total = sum(update.seconds for updates in timed.values() for update in updates)
        results = {}
        for contestant in contestants:
            seconds_of_others = total - sum(update.seconds for update in timed[contestant.name])
            idle_cores = idle[contestant.name] / seconds_of_others if seconds_of_others else 0.0
            results[contestant.name] = ContestantResult(timed[contestant.name], contestant.peak_bytes, idle_cores)
        return results

    def _round(self, number: int, contestants: list[ContestantProcess], idle: dict[str, float]) -> None:
        """One update of every contestant. idle: CPU seconds that each used while another one computed; this round's are added."""
        for contestant in contestants:
            others = [other for other in contestants if other is not contestant]
            before = [other.cpu_seconds() for other in others]
            contestant.update()
            if number > WARM_UP:
                for other, computed in zip(others, before, strict=True):
                    idle[other.name] += other.cpu_seconds() - computed
            if number in self.exports:
                seconds = sum(update.seconds for update in contestant.updates)
                student = contestant.export(self.directory / "students" / f"{contestant.name}-{number}")
                self.exported.setdefault(contestant.name, []).append(ExportedStudent(number, seconds, student))
        times = ", ".join(f"{c.name} {c.updates[-1].seconds:.2f} s" for c in contestants)
        self.console.print(f"update {number} of {self.updates}: {times}")
        self._check_same_prompts(contestants)

    def _check_same_prompts(self, contestants: list[ContestantProcess]) -> None:
        counts = {(c.updates[-1].worked.samples, c.updates[-1].worked.prompt_tokens) for c in contestants}
        if len(counts) != 1:
            raise RuntimeError(f"the contestants did not use the same prompts: (samples, prompt tokens) were {sorted(counts)}")

    def curves(self) -> dict[str, list[Point]]:
        """The reverse KL of all exported students, after those of the initial student. Call it after all contestants have ended."""
        from tests.benchmarks.held_out import HeldOutEvaluator

        evaluator = HeldOutEvaluator(self.job, self.arguments.quality_prompts)
        first = Point(0, 0.0, evaluator.reverse_kl(Path(self.job.student)))
        curves = {}
        for name, students in self.exported.items():
            self.console.print(f"measuring the students of {name}")
            curves[name] = [
                first,
                *(Point(student.updates, student.seconds, evaluator.reverse_kl(student.directory)) for student in students),
            ]
        return curves


def describe(arguments: argparse.Namespace, job: Job) -> dict[str, str]:
    """The facts at the head of the report: the pair, the work, the machine, the date, the commit and the command."""
    pair = PAIRS[arguments.pair]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    weight = arguments.policy_gradient_weight
    options = [f"--pair {arguments.pair} --dtype {arguments.dtype} --policy-gradient-weight {weight:g} --steps {arguments.steps}"]
    if arguments.quality:
        options.append(
            f"--quality {arguments.quality} --quality-points {arguments.quality_points} --quality-prompts {arguments.quality_prompts}"
        )
    options.append(f"--contestants {' '.join(arguments.contestants)}")
    as_trl = ", as TRL weights it" if weight == pair.trl_policy_gradient_weight != 1 else ""
    return {
        "pair": pair.description,
        "work": f"{pair.prompts} prompts of {sum(map(len, job.updates[0])) / pair.prompts:.0f} tokens on average, at most "
        f"{pair.response_tokens} new tokens each, one optimizer step; {arguments.dtype}, learning rate {pair.learning_rate:g}, "
        f"policy gradient weighted by {weight:g}{as_trl}",
        "machine": f"{processor_name()}, {node_facts().usable_cores} cores that a process may use, {arguments.threads} threads each",
        "instructions": " ".join(vector_instructions()),
        "date": str(date.today()),
        "commit": commit + (f" {UNCOMMITTED}" if changed else ""),
        "command": f"python -m tests.benchmarks.side_by_side {' '.join(options)}",
    }


def save(directory: Path, description: dict[str, str], tables: list[Table], results: dict[str, ContestantResult], curves: dict) -> None:
    """Write side_by_side.md and side_by_side.json."""
    facts = [f"- {name}: {value}" for name, value in description.items()]
    text = ["# Side by side", "", *facts, "", *(table.markdown() for table in tables)]
    (directory / "side_by_side.md").write_text("\n".join(text))
    values = {
        "about": description,
        "figures": {name: asdict(result) for name, result in results.items()},
        "curves": {name: [asdict(point) for point in curve] for name, curve in curves.items()},
    }
    (directory / "side_by_side.json").write_text(json.dumps(values, indent=1))


def parse(arguments: list[str] | None = None) -> list[argparse.Namespace]:
    """The options of each part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pair", choices=PAIRS, nargs="+", default=["smollm2"])
    parser.add_argument("--steps", type=int, default=5, help="timed updates, after one warm-up update")
    parser.add_argument("--contestants", nargs="+", choices=MODULES, default=["ours", "trl", "plain"])
    parser.add_argument("--threads", type=int, default=node_facts().usable_cores, help="threads of each contestant")
    parser.add_argument("--quality", type=int, default=0, help="continue to this many updates, then measure the students")
    parser.add_argument("--quality-points", type=int, default=4, help="measured students of each contestant")
    parser.add_argument("--quality-prompts", type=int, default=64, help="held-out prompts")
    parser.add_argument("--target", type=float, help="reverse KL; the report gives the time to it. Default: the lowest that all reached")
    parser.add_argument("--out", type=Path, default=Path("runs/side_by_side"))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="+", help="of all models; default: the pair's")
    parser.add_argument("--policy-gradient-weight", type=float, help="default: as TRL weights it where it takes part, else 1")
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    return [_part(options, name, dtype) for name in options.pair for dtype in options.dtype or [PAIRS[name].dtype]]


def _part(options: argparse.Namespace, name: str, dtype: str) -> argparse.Namespace:
    weight = options.policy_gradient_weight
    if weight is None:
        weight = PAIRS[name].trl_policy_gradient_weight if "trl" in options.contestants else 1.0
    return argparse.Namespace(**vars(options) | {"pair": name, "dtype": dtype, "policy_gradient_weight": weight})


def measure(arguments: argparse.Namespace, console: Console) -> Path:
    """Measures one part, unless it is finished. Returns its JSON file."""
    run = SideBySideRun(arguments, console)
    description = describe(arguments, run.job)  # before the run, because a commit may come while it runs
    file = run.directory / "side_by_side.json"
    if finished(file, description, bool(arguments.quality)):
        console.print(f"{file} has the results of this commit and these options")
        return file
    results = run.run()
    tables = [comparison.speed_table(results)] + ([comparison.ratio_table(results)] if "ours" in results else [])
    save(run.directory, description, tables, results, {})
    for table in tables:
        console.print(rich_table(table))
    if arguments.quality:
        curves = run.curves()
        target = arguments.target or comparison.common_target(curves)
        tables.append(comparison.quality_table(curves, target))
        comparison.picture(curves, target, PAIRS[arguments.pair].description, run.directory / "side_by_side.png")
        save(run.directory, description, tables, results, curves)
        console.print(rich_table(tables[-1]))
    console.print(f"written to {run.directory}")
    return file


def finished(file: Path, description: dict[str, str], quality: bool) -> bool:
    """Whether the file has the results of the same description, but for the date. Changes that are not committed are never the same."""
    if not file.is_file() or UNCOMMITTED in description["commit"]:
        return False
    report = json.loads(file.read_text())
    return report["about"] | {"date": ""} == description | {"date": ""} and bool(report["curves"]) == quality


def main() -> None:
    parts, console = parse(), Console()
    reports = [json.loads(measure(part, console).read_text()) for part in parts]
    table = comparison.overview_table({(part.pair, part.dtype): report for part, report in zip(parts, reports, strict=True)})
    console.print(rich_table(table))
    (parts[0].out / "overview.md").write_text(table.markdown())


if __name__ == "__main__":
    main()
