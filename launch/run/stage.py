"""One training stage on disk: its log, its checkpoints, and what a restart has to know."""

from pathlib import Path

from actors.groups.learner_group import LearnerGroup
from launch.observer import Observer
from launch.prepare import PreparedRun
from minirl.errors import InputError
from minirl.training import checkpoint
from minirl.training.log import MetricsLog
from minirl.training.on_policy_loop import OnPolicyLoop
from minirl.training.supervised_loop import SupervisedLoop


class Stage:
    """`<directory>/<name>`. started_from: what it goes on from (weights, data), which a restart must find again. unit: what it counts."""

    def __init__(self, prepared: PreparedRun, observer: Observer, name: str, unit: str, started_from: str):
        self.prepared, self.observer, self.name, self.started_from = prepared, observer, name, started_from
        self.directory, self.unit = prepared.directory / name, unit
        self.metrics = MetricsLog(prepared.directory / "metrics.jsonl", name, unit, listener=observer.record)
        self._checkpoints = self.directory / "checkpoints"

    def resume(self, driver: OnPolicyLoop | SupervisedLoop) -> bool:
        """Bring the driver to where the newest checkpoint is. Returns whether anything is left to do."""
        self.driver, self._found = driver, checkpoint.latest(self._checkpoints)
        if self._found:
            self._load(self._found[1])
        if driver.finished:
            return False
        self.metrics.resume_at(driver.position)
        self.observer.stage_started(self.name, driver.total, driver.position, self.unit)
        driver.watch.listener = self.doing
        return True

    def doing(self, what: str) -> None:
        self.observer.doing(self.name, what)

    def start(self, learner: LearnerGroup) -> None:
        """Give the learner what the checkpoint holds of it."""
        self.learner = learner
        if self._found:
            learner.load(str(self._found[0]))

    def checkpoint(self, *, keep: int = 1) -> None:
        config = self.prepared.config.learner
        state = {
            "driver": self.driver.state_dict(),
            "learner": {"workers": config.workers, "zero_stage": config.zero_stage},
            "started_from": self.started_from,
        }
        checkpoint.write(self._checkpoints, self.driver.position, state, self.learner.save, keep=keep)

    def student(self, which: str) -> Path:
        """`best` or `last`."""
        return self.directory / which

    def _load(self, state: dict) -> None:
        if state["started_from"] != self.started_from:
            raise InputError(
                f"{self.directory} goes on from other weights or data than the stage before it left; delete that directory to do the stage "
                "anew, or give another directory=..."
            )
        for key, value in state["learner"].items():
            if getattr(self.prepared.config.learner, key) != value:
                raise InputError(f"the checkpoint was written with learner.{key} = {value}; set that to go on, or give another directory")
        self.driver.load_state_dict(state["driver"])
