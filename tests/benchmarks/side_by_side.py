"""minillm-ray beside what one would take instead: TRL's MiniLLM trainer, and a plain single-process loop.

    python -m tests.benchmarks.side_by_side --pair smollm2 --steps 5 --contestants ours trl plain --out runs/side_by_side

Same machine, models, prompts, lengths and threads. The contestants stand side by side and take one update each in turn, so that a change
in the machine meets all of them. `--quality N` goes on to N updates and then judges students of all on their way.
"""

import argparse
import json
import os
import subprocess
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from rich.console import Console

from launch.bench import processor
from launch.progress import shown
from minirl.tables import Table
from tests.benchmarks import comparison
from tests.benchmarks.comparison import Figures, Point
from tests.benchmarks.contestants import MODULES, ROOT, Contestant, python_of
from tests.benchmarks.pairs import PAIRS, make_job
from tests.benchmarks.turns import Job

WARM_UP = 1


@dataclass(frozen=True)
class Exported:
    updates: int
    seconds: float
    directory: Path


class SideBySide:
    """exports: the numbers of updates after which the students are kept."""

    def __init__(self, arguments: argparse.Namespace, console: Console):
        self.arguments, self.console = arguments, console
        self.directory = arguments.out / arguments.pair
        self.updates = max(WARM_UP + arguments.steps, arguments.quality)
        parts = arguments.quality_points
        self.exports = {arguments.quality * part // parts for part in range(1, parts + 1)} if arguments.quality else set()
        self.job = make_job(arguments.pair, self.updates, arguments.threads, self.directory)
        self.file = self.directory / "job.json"
        self.job.write(self.file)
        self.kept: dict[str, list[Exported]] = {}

    def run(self) -> dict[str, Figures]:
        with ExitStack() as started:
            contestants = []
            for name in self.arguments.contestants:
                self.console.print(f"starting {name}")
                contestant = Contestant(name, self.file, self.arguments.threads, python_of(name))
                started.callback(contestant.stop)
                contestant.wait_ready()
                contestants.append(contestant)
            idle = {contestant.name: 0.0 for contestant in contestants}
            for number in range(1, self.updates + 1):
                self._round(number, contestants, idle)
        timed = {contestant.name: contestant.turns[WARM_UP:] for contestant in contestants}
        total = sum(turn.seconds for turns in timed.values() for turn in turns)
        found = {}
        for contestant in contestants:
            waited = total - sum(turn.seconds for turn in timed[contestant.name])
            share = idle[contestant.name] / waited if waited else 0.0
            found[contestant.name] = Figures(timed[contestant.name], contestant.peak_bytes, share)
        return found

    def _round(self, number: int, contestants: list[Contestant], idle: dict[str, float]) -> None:
        for contestant in contestants:
            others = [other for other in contestants if other is not contestant]
            before = [other.cpu_seconds() for other in others]
            contestant.update()
            if number > WARM_UP:
                for other, computed in zip(others, before, strict=True):
                    idle[other.name] += other.cpu_seconds() - computed
            if number in self.exports:
                seconds = sum(turn.seconds for turn in contestant.turns)
                student = contestant.export(self.directory / "students" / f"{contestant.name}-{number}")
                self.kept.setdefault(contestant.name, []).append(Exported(number, seconds, student))
        took = ", ".join(f"{c.name} {c.turns[-1].seconds:.2f} s" for c in contestants)
        self.console.print(f"update {number} of {self.updates}: {took}")
        self._check_same_prompts(contestants)

    def _check_same_prompts(self, contestants: list[Contestant]) -> None:
        given = {(c.turns[-1].worked.samples, c.turns[-1].worked.prompt_tokens) for c in contestants}
        if len(given) != 1:
            raise RuntimeError(f"the contestants did not get the same prompts: (samples, prompt tokens) were {sorted(given)}")

    def curves(self) -> dict[str, list[Point]]:
        """EvaluatedSamples after all contestants have ended, each from the same initial student."""
        from tests.benchmarks.held_out import Judge

        judge = Judge(self.job, self.arguments.quality_prompts)
        first = Point(0, 0.0, judge.reverse_kl(Path(self.job.student)))
        curves = {}
        for name, kept in self.kept.items():
            self.console.print(f"judging the students of {name}")
            curves[name] = [first, *(Point(one.updates, one.seconds, judge.reverse_kl(one.directory)) for one in kept)]
        return curves


def about(arguments: argparse.Namespace, job: Job) -> dict[str, str]:
    pair = PAIRS[arguments.pair]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    judged = f" --quality {arguments.quality} --quality-points {arguments.quality_points} --quality-prompts {arguments.quality_prompts}"
    quality = judged if arguments.quality else ""
    given = f"--pair {arguments.pair} --steps {arguments.steps}{quality} --contestants {' '.join(arguments.contestants)}"
    return {
        "pair": pair.about,
        "work": f"{pair.prompts} prompts of {sum(map(len, job.updates[0])) / pair.prompts:.0f} tokens on average, at most "
        f"{pair.response_tokens} new tokens each, one optimizer step; {pair.dtype}, learning rate {pair.learning_rate:g}",
        "machine": f"{processor()}, {os.cpu_count()} cores, {arguments.threads} threads each",
        "date": str(date.today()),
        "commit": commit + (" with changes not committed" if changed else ""),
        "command": f"python -m tests.benchmarks.side_by_side {given}",
    }


def save(directory: Path, described: dict[str, str], tables: list[Table], figures: dict[str, Figures], curves: dict) -> None:
    facts = [f"- {name}: {value}" for name, value in described.items()]
    text = ["# Side by side", "", *facts, "", *(table.markdown() for table in tables)]
    (directory / "side_by_side.md").write_text("\n".join(text))
    values = {
        "about": described,
        "figures": {name: asdict(found) for name, found in figures.items()},
        "curves": {name: [asdict(point) for point in curve] for name, curve in curves.items()},
    }
    (directory / "side_by_side.json").write_text(json.dumps(values, indent=1))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pair", choices=PAIRS, default="smollm2")
    parser.add_argument("--steps", type=int, default=5, help="timed updates, after one to warm up")
    parser.add_argument("--contestants", nargs="+", choices=MODULES, default=["ours", "trl", "plain"])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each contestant")
    parser.add_argument("--quality", type=int, default=0, help="go on to so many updates, then judge the students")
    parser.add_argument("--quality-points", type=int, default=4, help="students of each contestant that are judged")
    parser.add_argument("--quality-prompts", type=int, default=64, help="held-out prompts")
    parser.add_argument("--target", type=float, help="reverse KL whose time is told; without it, the lowest that all reached")
    parser.add_argument("--out", type=Path, default=Path("runs/side_by_side"))
    return parser.parse_args(arguments)


def main() -> None:
    arguments, console = parse(), Console()
    arguments.out = arguments.out.resolve()
    run = SideBySide(arguments, console)
    described = about(arguments, run.job)  # of now: a commit may come while it runs
    figures = run.run()
    tables = [comparison.speed_table(figures)] + ([comparison.ratio_table(figures)] if "ours" in figures else [])
    save(run.directory, described, tables, figures, {})
    for table in tables:
        console.print(shown(table))
    if arguments.quality:
        curves = run.curves()
        target = arguments.target or comparison.common_target(curves)
        tables.append(comparison.quality_table(curves, target))
        comparison.picture(curves, target, PAIRS[arguments.pair].about, run.directory / "side_by_side.png")
        save(run.directory, described, tables, figures, curves)
        console.print(shown(tables[-1]))
    console.print(f"written to {run.directory}")


if __name__ == "__main__":
    main()
