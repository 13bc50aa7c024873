"""`minirl experiment`: many runs that differ in a few settings, from the same student and teacher; one small JSON each, so that an
interrupted experiment goes on with the row that is missing.
"""

import hashlib
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.config import STUDENT_STAGES, RunConfig
from launch.experiment.subprocess import run_to_end
from launch.observer import Observer
from minirl.config.experiment import ExperimentConfig, RowConfig
from minirl.config.reader import validate_config
from minirl.errors import InputError, RunError
from minirl.evaluation.comparison import Method, Scores, brief, picture, tables
from minirl.files import read_json_lines, write_json
from minirl.model.loading import fingerprint
from minirl.tables import Table

COMMON = "common"
WORK = ("target_tokens", "sampled_tokens", "training_seconds")


@dataclass(frozen=True)
class Run:
    """One row at one seed."""

    row: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        return f"{self.row}-{self.seed}"


class Experiment:
    """<directory>/common                   the run of the common stages
    <directory>/runs/<row>-<seed>        one run each
    <directory>/rows/<row>-<seed>.json   what it was and took, once it is finished
    <directory>/evaluate                 all students, judged together (`launch.evaluation.evaluate`)
    <directory>/experiment.md, .json, .png
    """

    def __init__(self, config: ExperimentConfig, observer: Observer):
        self.config, self.observer, self.directory = config, observer, Path(config.directory)
        settings = merged(config.run, {"directory": str(self.directory / COMMON), "seed": config.common_seed, "stages": config.common})
        self.common = validate_config(RunConfig, settings)

    def runs(self, rows: list[str]) -> list[Run]:
        """Those of the named rows (none: all), every one validated, so that a mistake shows before anything runs."""
        for name in rows:
            if name not in self.config.rows:
                raise InputError(f"there is no row {name}; the rows are {', '.join(self.config.rows)}")
        chosen = {name: row for name, row in self.config.rows.items() if not rows or name in rows}
        return [Run(name, seed, self._config_of(name, row, seed)) for name, row in chosen.items() for seed in row.seeds]

    def run(self, rows: list[str]) -> list[Table]:
        """Make what is missing, the first seed of every row before the second ones; then judge and report all that is there."""
        runs = sorted(self.runs(rows), key=lambda run: self.config.rows[run.row].seeds.index(run.seed))
        self.observer.stage_started("experiment", len(runs), 0, "run")
        self.observer.doing("experiment", COMMON)
        self._command("run", self.common)
        for number, run in enumerate(runs):
            self.observer.progressed(number)
            if self.finished(run) is None:
                self.observer.doing("experiment", run.name)
                self._command("run", run.config)
                write_json(self._file(run), self._row(run))
            for unneeded in Path(run.config.directory).glob("*/checkpoints"):  # a gigabyte and more, of a run that goes on no further
                shutil.rmtree(unneeded)
        self.observer.progressed(len(runs))
        self.observer.doing("experiment", "evaluate")
        done = [run for run in self.runs([]) if self.finished(run)]
        self.evaluate(done)
        return self.report(done)

    def evaluate(self, runs: list[Run]) -> None:
        """Every student that is there, beside the one that all started from; those that were judged before are not judged again."""
        stages = self.common.stages.model_copy(update={"evaluate": self.config.evaluate})
        models = {"start": self._student()} | {run.name: str(_student_of(run)) for run in runs}
        given = [argument for name, model in models.items() for argument in ("--model", f"{name}={Path(model).resolve()}")]
        self._command("evaluate", self.common.model_copy(update={"stages": stages}), *given, "--out", str(self.directory / "evaluate"))

    def report(self, runs: list[Run]) -> list[Table]:
        """Write the tables and the picture; returns the tables in brief. Empty while the baseline has no run."""
        methods = self._methods(runs)
        if self.config.baseline not in [method.name for method in methods]:
            return []
        found = tables(methods, self.config.baseline)
        lines = ["# Experiment", "", *(table.markdown() for table in found), "![differences from the baseline](experiment.png)", ""]
        (self.directory / "experiment.md").write_text("\n".join(lines))
        picture(methods, self.config.baseline).savefig(self.directory / "experiment.png", dpi=150)
        write_json(self.directory / "experiment.json", [asdict(table) for table in found])
        return brief(methods, self.config.baseline)

    def _methods(self, runs: list[Run]) -> list[Method]:
        methods = []
        for name, row in self.config.rows.items():
            own = [run for run in runs if run.row == name]
            if own:
                facts = [self.finished(run) for run in own]
                means = {key: sum(one[key] for one in facts) / len(facts) for key in WORK}
                folder = self.directory / "evaluate"
                sets = {asked: [Scores.read(folder / asked / f"{run.name}.npz") for run in own] for asked in self.config.evaluate.sets}
                methods.append(Method(name, row.about, [run.seed for run in own], sets, row.changes, **means))
        return methods

    def finished(self, run: Run) -> dict[str, Any] | None:
        """The row's JSON, where it stands for these settings and these starting weights."""
        file = self._file(run)
        found = json.loads(file.read_text()) if file.is_file() else {}
        return found if found.get("identity") == self._identity(run) else None

    def _config_of(self, name: str, row: RowConfig, seed: int) -> RunConfig:
        start = {"teacher": {"model": self._teacher()}, "student": {"model": self._student(), "layers": None}}
        own = {"directory": str(self.directory / "runs" / f"{name}-{seed}"), "seed": seed}
        return validate_config(RunConfig, merged(merged(merged(self.config.run, start), row.settings), own))

    def _teacher(self) -> str:
        stages = self.common.stages
        return str(self.directory / COMMON / "sft_teacher" / "best") if stages.sft_teacher else self.common.teacher.model

    def _student(self) -> str:
        left = list(self.common.stages.students().values())
        initial = "models/student_init" if self.common.student.layers else None
        if not left and not initial:
            return self.common.student.model
        return str(self.directory / COMMON / (left[-1] if left else initial))

    def _command(self, verb: str, config: RunConfig, *options: str) -> None:
        """The real command in a process of its own; what it prints goes to its directory's `<verb>.log`."""
        directory = Path(config.directory)
        directory.mkdir(parents=True, exist_ok=True)
        file, log = directory / f"{verb}.yaml", directory / f"{verb}.log"
        file.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True), sort_keys=False))
        code = run_to_end([str(Path(sys.executable).with_name("minirl")), verb, str(file), *options], log)
        if code:
            raise RunError(f"minirl {verb} in {directory} ended with code {code}; see {log}, then start the experiment again")

    def _row(self, run: Run) -> dict[str, Any]:
        records = read_json_lines(Path(run.config.directory) / "metrics.jsonl")
        about = {"row": run.row, "about": self.config.rows[run.row].about, "seed": run.seed, "student": str(_student_of(run))}
        return {"identity": self._identity(run)} | about | work_of([r for r in records if r["stage"] in STUDENT_STAGES])

    def _identity(self, run: Run) -> str:
        settings = json.dumps(run.config.model_dump(exclude={"directory", "cluster"}), sort_keys=True)
        weights = [fingerprint(model) for model in (run.config.teacher.model, run.config.student.model)]
        return hashlib.sha256(" ".join([settings, *weights]).encode()).hexdigest()

    def _file(self, run: Run) -> Path:
        folder = self.directory / "rows"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{run.name}.json"


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, mappings merged to any depth; anything else replaces what was there."""
    both = {key: merged(base[key], value) for key, value in changes.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    return base | changes | both


def work_of(records: list[dict[str, Any]]) -> dict[str, float]:
    """Tokens with gradient (repeats counted), tokens that the student sampled for it, and the seconds of updates and iterations."""
    last = {record["stage"]: record["learner/target_tokens"] for record in records if "learner/target_tokens" in record}
    seconds = sum(value for record in records for name, value in record.items() if name.startswith("time/") and name != "time/iteration")
    return dict(zip(WORK, (sum(last.values()), sum(r.get("rollout/response_tokens", 0) for r in records), seconds), strict=True))


def _student_of(run: Run) -> Path:
    return Path(run.config.directory) / list(run.config.stages.students().values())[-1]
