"""`minirl experiment`: many runs that differ in a few settings, from the same student and teacher; one small JSON each, so that an
interrupted experiment goes on with the row that is missing.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from launch.config import STUDENT_STAGES, RunConfig
from launch.watcher import Watcher
from minirl.checkpoint import write_json
from minirl.config import StrictModel, validate_config
from minirl.errors import InputError, RunError
from minirl.models import fingerprint

COMMON = "common"


class RowConfig(StrictModel):
    """One method. settings: what it changes of `run`, to any depth; about: what the table calls it."""

    about: str
    seeds: list[int] = Field(min_length=1)
    settings: dict[str, Any]


class ExperimentConfig(StrictModel):
    """run: the settings of every run but `directory` and `seed`. common: the stages that are done once, whose teacher and student every
    row starts from. rows: the methods; `baseline` names the one that the others are compared with, prompt by prompt.
    """

    directory: str
    run: dict[str, Any]
    common: dict[str, Any]
    common_seed: int = 10
    baseline: str
    rows: dict[str, RowConfig]

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.baseline not in self.rows:
            raise ValueError(f"baseline: {self.baseline} is none of the rows {', '.join(self.rows)}")
        for key in ("directory", "seed"):
            if key in self.run:
                raise ValueError(f"run.{key} is set by the experiment itself; leave it out")
        return self


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
    """`<directory>/common`, `<directory>/runs/<row>-<seed>`, and `<directory>/rows/<row>-<seed>.json` for each that is finished."""

    def __init__(self, config: ExperimentConfig, watcher: Watcher):
        self.config, self.watcher, self.directory = config, watcher, Path(config.directory)
        settings = merged(config.run, {"directory": str(self.directory / COMMON), "seed": config.common_seed, "stages": config.common})
        self.common = validate_config(RunConfig, settings)

    def runs(self, rows: list[str]) -> list[Run]:
        """Those of the named rows (none: all), every one validated, so that a mistake shows before anything runs."""
        for name in rows:
            if name not in self.config.rows:
                raise InputError(f"there is no row {name}; the rows are {', '.join(self.config.rows)}")
        chosen = {name: row for name, row in self.config.rows.items() if not rows or name in rows}
        return [Run(name, seed, self._config_of(name, row, seed)) for name, row in chosen.items() for seed in row.seeds]

    def run(self, rows: list[str]) -> None:
        """Make what is missing, the first seed of every row before the second ones."""
        runs = sorted(self.runs(rows), key=lambda run: self.config.rows[run.row].seeds.index(run.seed))
        self._start(self.common)
        for number, run in enumerate(runs):
            self.watcher.total_of("experiment", len(runs), number)
            if self.finished(run) is None:
                self.watcher.doing("experiment", run.name)
                self._start(run.config)
                write_json(self._file(run), self._row(run))

    def finished(self, run: Run) -> dict[str, Any] | None:
        """The row's JSON, where it stands for these settings and these starting weights."""
        file = self._file(run)
        found = json.loads(file.read_text()) if file.is_file() else {}
        return found if found.get("identity") == self._identity(run) else None

    def rows(self) -> list[dict[str, Any]]:
        """All that are finished, in the order of the config."""
        return [found for run in self.runs([]) if (found := self.finished(run))]

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

    def _start(self, config: RunConfig) -> None:
        """The real command in a process of its own; what it prints goes to its directory's `log.txt`."""
        directory = Path(config.directory)
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "run.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
        with (directory / "log.txt").open("a") as log:
            command = [str(Path(sys.executable).with_name("minirl")), "run", str(file)]
            ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
        if ended.returncode:
            raise RunError(f"the run in {directory} ended with code {ended.returncode}; see {directory / 'log.txt'}, then start again")

    def _row(self, run: Run) -> dict[str, Any]:
        directory = Path(run.config.directory)
        stage = list(run.config.stages.students())[-1]
        summary = json.loads((directory / "summary.json").read_text())
        records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return {
            "identity": self._identity(run),
            "row": run.row,
            "about": self.config.rows[run.row].about,
            "seed": run.seed,
            **tokens_of([record for record in records if record["stage"] in STUDENT_STAGES]),
            "student": summary[stage],
            "student_init": summary["student_init"],
            "teacher": summary["teacher"],
        }

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


def tokens_of(records: Iterator[dict] | list[dict]) -> dict[str, float]:
    """Tokens with gradient (repeats counted), tokens that the student sampled for it, and the seconds of its updates or iterations."""
    last = {record["stage"]: record["learner/target_tokens"] for record in records if "learner/target_tokens" in record}
    seconds = sum(value for record in records for name, value in record.items() if name.startswith("time/") and name != "time/iteration")
    return {
        "target_tokens": sum(last.values()),
        "sampled_tokens": sum(record.get("rollout/response_tokens", 0) for record in records),
        "training_seconds": seconds,
    }
