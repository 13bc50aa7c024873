"""`minirl experiment`: runs methods and seeds from one student and teacher, then evaluates and compares them.

Each finished run leaves one small JSON file, so an interrupted experiment resumes at the first run that is missing.
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
from launch.dtypes import ROLES, resolve_dtypes
from launch.experiment.subprocess import run_to_end
from launch.identity import source_content
from launch.observer import Observer
from minirl.config.experiment import ExperimentConfig, RowConfig
from minirl.config.reader import validate_config
from minirl.errors import InputError, RunError
from minirl.evaluation.comparison import Method, RunScores, brief_tables, difference_plot, full_tables
from minirl.files import read_json_lines, write_json
from minirl.model.loading import fingerprint
from minirl.tables import Table

COMMON = "common"
WORK_FIELDS = ("target_tokens", "sampled_tokens", "training_seconds")


@dataclass(frozen=True)
class Run:
    """One row of the experiment at one seed."""

    row: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        return f"{self.row}-{self.seed}"


class Experiment:
    """<directory>/common                   the run of the common stages
    <directory>/runs/<row>-<seed>        one run each
    <directory>/rows/<row>-<seed>.json   settings, tokens and time of a finished run
    <directory>/evaluate                 the evaluation of all students together (`launch.evaluation.evaluate`)
    <directory>/experiment.md, .json, .png
    """

    def __init__(self, config: ExperimentConfig, observer: Observer):
        self.observer, self.directory = observer, Path(config.directory)
        settings = merged(config.run, {"directory": str(self.directory / COMMON), "seed": config.common_seed, "stages": config.common})
        common = validate_config(RunConfig, settings)
        # For all runs at once: they are compared, and an experiment that goes on elsewhere keeps its dtypes.
        self.common, self.dtype_line = resolve_dtypes(common, self.directory.resolve() / COMMON)
        dtypes = {role: {"dtype": getattr(self.common, role).dtype} for role in ROLES}
        self.config = config.model_copy(update={"run": merged(config.run, dtypes)})

    def runs(self, rows: list[str]) -> list[Run]:
        """The runs of the named rows, of all rows if `rows` is empty. Validates every config, so that mistakes show before a run starts."""
        for name in rows:
            if name not in self.config.rows:
                raise InputError(f"there is no row {name}; the rows are {', '.join(self.config.rows)}")
        chosen = {name: row for name, row in self.config.rows.items() if not rows or name in rows}
        return [Run(name, seed, self._run_config(name, row, seed)) for name, row in chosen.items() for seed in row.seeds]

    def run(self, rows: list[str]) -> list[Table]:
        """Run what is missing, the first seed of every row before the second ones; then evaluate and report all finished runs."""
        runs = sorted(self.runs(rows), key=lambda run: self.config.rows[run.row].seeds.index(run.seed))
        self.observer.stage_started("experiment", len(runs), 0, "run")
        self.observer.doing("experiment", COMMON)
        self._command("run", self.common)
        for number, run in enumerate(runs):
            self.observer.progressed(number)
            if self.finished_row(run) is None:
                self.observer.doing("experiment", run.name)
                self._command("run", run.config)
                write_json(self._row_file(run), self._row(run))
            for checkpoints in Path(run.config.directory).glob("*/checkpoints"):  # over a gigabyte, and a finished run never resumes
                shutil.rmtree(checkpoints)
        self.observer.progressed(len(runs))
        self.observer.doing("experiment", "evaluate")
        finished = [run for run in self.runs([]) if self.finished_row(run)]
        self.evaluate(finished)
        return self.report(finished)

    def evaluate(self, runs: list[Run]) -> None:
        """Evaluate the students of these runs and the student that all started from; `minirl evaluate` skips those already measured."""
        stages = self.common.stages.model_copy(update={"evaluate": self.config.evaluate})
        models = {"start": self._starting_student()} | {run.name: str(_trained_student(run)) for run in runs}
        options = [option for name, model in models.items() for option in ("--model", f"{name}={Path(model).resolve()}")]
        self._command("evaluate", self.common.model_copy(update={"stages": stages}), *options, "--out", str(self.directory / "evaluate"))

    def report(self, runs: list[Run]) -> list[Table]:
        """Write the tables and the plot; returns the brief tables. Writes and returns nothing while the baseline has no run."""
        methods = self._methods(runs)
        if self.config.baseline not in [method.name for method in methods]:
            return []
        tables = full_tables(methods, self.config.baseline)
        lines = ["# Experiment", "", *(table.markdown() for table in tables), "![differences from the baseline](experiment.png)", ""]
        (self.directory / "experiment.md").write_text("\n".join(lines))
        difference_plot(methods, self.config.baseline).savefig(self.directory / "experiment.png", dpi=150)
        write_json(self.directory / "experiment.json", [asdict(table) for table in tables])
        return brief_tables(methods, self.config.baseline)

    def _methods(self, runs: list[Run]) -> list[Method]:
        """The rows that have runs among these, with the scores of their evaluation."""
        methods = []
        for name, row in self.config.rows.items():
            row_runs = [run for run in runs if run.row == name]
            if row_runs:
                finished = [self.finished_row(run) for run in row_runs]
                means = {key: sum(values[key] for values in finished) / len(finished) for key in WORK_FIELDS}
                folder, set_names = self.directory / "evaluate", self.config.evaluate.sets
                scores = {s: [RunScores.read(folder / s / f"{run.name}.npz") for run in row_runs] for s in set_names}
                methods.append(Method(name, row.about, [run.seed for run in row_runs], scores, row.changes, **means))
        return methods

    def finished_row(self, run: Run) -> dict[str, Any] | None:
        """The run's row as JSON; None without a file, or where it belongs to other settings, starting weights or data."""
        file = self._row_file(run)
        row = json.loads(file.read_text()) if file.is_file() else {}
        same_content = row.get("content", now := source_content(run.config)) == now  # earlier versions recorded none
        return row if row.get("identity") == self._identity(run) and same_content else None

    def _run_config(self, name: str, row: RowConfig, seed: int) -> RunConfig:
        start = {"teacher": {"model": self._starting_teacher()}, "student": {"model": self._starting_student(), "layers": None}}
        run_settings = {"directory": str(self.directory / "runs" / f"{name}-{seed}"), "seed": seed}
        return validate_config(RunConfig, merged(merged(merged(self.config.run, start), row.settings), run_settings))

    def _starting_teacher(self) -> str:
        stages = self.common.stages
        return str(self.directory / COMMON / "sft_teacher" / "best") if stages.sft_teacher else self.common.teacher.model

    def _starting_student(self) -> str:
        """The result of the last common stage, or the pruned student, or the configured model."""
        trained = list(self.common.stages.student_directories().values())
        initial = "models/student_init" if self.common.student.layers else None
        if not trained and not initial:
            return self.common.student.model
        return str(self.directory / COMMON / (trained[-1] if trained else initial))

    def _command(self, verb: str, config: RunConfig, *options: str) -> None:
        """Run `minirl <verb>` as a child process; its output goes to `<verb>.log` in the config's directory."""
        directory = Path(config.directory)
        directory.mkdir(parents=True, exist_ok=True)
        file, log = directory / f"{verb}.yaml", directory / f"{verb}.log"
        file.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True), sort_keys=False))
        code = run_to_end([str(Path(sys.executable).with_name("minirl")), verb, str(file), *options], log)
        if code:
            last_line = next(iter(log.read_text(errors="replace").strip().splitlines()[-1:]), "no output")[:1000]
            raise RunError(f"minirl {verb} in {directory} ended with code {code}; see {log}, which ends with: {last_line}")

    def _row(self, run: Run) -> dict[str, Any]:
        records = read_json_lines(Path(run.config.directory) / "metrics.jsonl")
        about = {"row": run.row, "about": self.config.rows[run.row].about, "seed": run.seed, "student": str(_trained_student(run))}
        identity = {"identity": self._identity(run), "content": source_content(run.config)}
        return identity | about | work_of([r for r in records if r["stage"] in STUDENT_STAGES])

    def _identity(self, run: Run) -> str:
        """Hash of the settings and starting weights that the row belongs to."""
        settings = json.dumps(run.config.model_dump(exclude={"directory", "cluster"}), sort_keys=True)
        weights = [fingerprint(model) for model in (run.config.teacher.model, run.config.student.model)]
        return hashlib.sha256(" ".join([settings, *weights]).encode()).hexdigest()

    def _row_file(self, run: Run) -> Path:
        folder = self.directory / "rows"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{run.name}.json"


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` updated with `changes`: nested mappings are merged at any depth, other values are replaced."""
    both = {key: merged(base[key], value) for key, value in changes.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    return base | changes | both


def work_of(records: list[dict[str, Any]]) -> dict[str, float]:
    """Training work from metrics: tokens with gradient (repeats counted), tokens the student sampled, seconds of updates and iterations."""
    target_tokens = {record["stage"]: record["learner/target_tokens"] for record in records if "learner/target_tokens" in record}
    seconds = sum(value for record in records for name, value in record.items() if name.startswith("time/") and name != "time/iteration")
    sampled_tokens = sum(record.get("rollout/response_tokens", 0) for record in records)
    return dict(zip(WORK_FIELDS, (sum(target_tokens.values()), sampled_tokens, seconds), strict=True))


def _trained_student(run: Run) -> Path:
    return Path(run.config.directory) / list(run.config.stages.student_directories().values())[-1]
