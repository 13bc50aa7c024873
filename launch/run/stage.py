"""A training stage on disk: its log, its checkpoints, and the checks before it resumes from one."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from actors.groups.learner_group import LearnerGroup
from launch.interruption import INTERRUPTION
from launch.observer import Observer
from launch.prepare import PreparedRun
from minirl.errors import InputError
from minirl.training import checkpoint
from minirl.training.log import MetricsLog
from minirl.training.on_policy_loop import OnPolicyLoop
from minirl.training.supervised_loop import SupervisedLoop


class Stage:
    """The directory `<directory of the run>/<name>` of a stage.

    started_from: fingerprints of the weights and data that the stage starts from; a resume must find the same ones. unit: what the
    stage counts, "update" or "iteration". roles: the groups that compute it.
    """

    def __init__(self, prepared: PreparedRun, observer: Observer, name: str, unit: str, started_from: str, roles: tuple[str, ...]):
        self.prepared, self.observer, self.name, self.started_from = prepared, observer, name, started_from
        self.directory, self.unit, self.roles = prepared.directory / name, unit, roles
        self.metrics = MetricsLog(prepared.directory / "metrics.jsonl", name, unit, listener=observer.record)
        self._checkpoints = self.directory / "checkpoints"

    def resume(self, loop: OnPolicyLoop | SupervisedLoop) -> bool:
        """Loads the newest checkpoint, if there is one, into the loop. Returns whether the stage has anything left to do.

        Raises InputError if the checkpoint belongs to other weights, other data or another learner layout.
        """
        self.loop, self._newest_checkpoint = loop, checkpoint.latest(self._checkpoints)
        if self._newest_checkpoint:
            self._load(self._newest_checkpoint[1])
        self._saved_position = loop.position
        if loop.finished:
            return False
        self.metrics.resume_at(loop.position)
        self.observer.stage_started(self.name, loop.total, loop.position, self.unit)
        loop.stopwatch.listener = self.doing
        loop.uninterrupted = partial(INTERRUPTION.deferred, self._announce_end)
        return True

    def doing(self, activity: str) -> None:
        self.observer.doing(self.name, activity)

    def start(self, learner: LearnerGroup) -> None:
        """Loads the learner's part of the newest checkpoint, if there is one."""
        self.learner = learner
        if self._newest_checkpoint:
            learner.load(str(self._newest_checkpoint[0]))

    def checkpoint(self, *, keep: int = 1) -> None:
        """Writes a checkpoint and deletes all but the newest `keep`."""
        config = self.prepared.config.learner
        state = {
            "driver": self.loop.state_dict(),
            "learner": {"workers": config.workers, "zero_stage": config.zero_stage},
            "dtype": {role: getattr(self.prepared.config, role).dtype for role in self.roles},
            "started_from": self.started_from,
        }
        checkpoint.write(self._checkpoints, self.loop.position, state, self.learner.save, keep=keep)
        self._saved_position = self.loop.position

    @contextmanager
    def checkpoint_when_interrupted(self, *, keep: int = 1) -> Iterator[None]:
        """A block that iterates over the loop. An interruption writes a checkpoint of what was finished since the last one."""
        try:
            yield
        except KeyboardInterrupt:
            if self.loop.position > self._saved_position:
                self.doing("checkpoint")
                self.checkpoint(keep=keep)
            raise

    def _announce_end(self) -> None:
        self.observer.warn(self.name, f"interrupted; finishes this {self.unit} and writes a checkpoint; a second signal ends the run now")

    def student_directory(self, which: str) -> Path:
        """Directory of the exported student. which: "best" or "last"."""
        return self.directory / which

    def _load(self, state: dict) -> None:
        if state["started_from"] != self.started_from:
            raise InputError(
                f"{self.directory} was started from other weights or data than it would start from now; delete it to repeat the "
                "stage, or give another directory=..."
            )
        settings = {("learner", key): value for key, value in state["learner"].items()}
        settings |= {(role, "dtype"): value for role, value in state.get("dtype", {}).items()}  # earlier versions recorded none
        for (role, key), value in settings.items():
            if getattr(getattr(self.prepared.config, role), key) != value:
                raise InputError(
                    f"the checkpoint was written with {role}.{key} = {value}; set that to resume, or give another directory=..."
                )
        self.loop.load_state_dict(state["driver"])
