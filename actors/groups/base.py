"""All Ray processes of one role: started together, called with a deadline, ended together."""

import re
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from minirl.errors import InputError, RunError

PAUSE_S = 1e-4  # for each watched reference: looking at it takes a fiftieth of that
TERMINAL_COLOR = re.compile("\x1b\\[[0-9;]*m")


class Group:
    """`workers` actors of one plain class, each on a bundle of its own.

    worker_class(**keywords(index)) is built in each process. Raises InputError where the cluster can never hold the group.
    """

    def __init__(
        self,
        role: str,
        worker_class: type,
        keywords: Callable[[int], dict[str, Any]],
        *,
        workers: int,
        bundle: dict[str, float],
        environment: dict[str, str],
        start_timeout_s: float,
        step_timeout_s: float,
    ):
        self.role, self.step_timeout_s, self.start_timeout_s = role, step_timeout_s, start_timeout_s
        self._placement = placement_group([dict(bundle) for _ in range(workers)], strategy="PACK")
        try:
            ray.get(self._placement.ready(), timeout=min(60.0, start_timeout_s))
        except GetTimeoutError:
            remove_placement_group(self._placement)
            needed = ", ".join(f"{workers} x {amount:g} {kind}" for kind, amount in bundle.items())
            raise InputError(f"the Ray cluster has no room for the {role} group ({needed}); lower {role}.workers or add nodes") from None
        remote = self.remote_class(worker_class)
        self.workers = [
            remote.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._placement, index),
                runtime_env={"env_vars": environment},
            ).remote(**keywords(index))
            for index in range(workers)
        ]

    def remote_class(self, worker_class: type) -> Any:
        """The class that Ray builds in each process."""
        return ray.remote(worker_class)

    def wait_started(self) -> None:
        """Block until every constructor has returned."""
        self.get([worker.__ray_ready__.remote() for worker in self.workers], "start", self.start_timeout_s)

    def begin_call(self, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """The same call on every worker, not waited for."""
        return [getattr(worker, method).remote(*arguments) for worker in self.workers]

    def call(self, method: str, *arguments: Any, phase: str | None = None, timeout_s: float | None = None) -> list[Any]:
        """The same call on every worker; its results in order of workers."""
        return self.get(self.begin_call(method, *arguments), phase or method, timeout_s)

    def get(self, refs: list[ray.ObjectRef], phase: str, timeout_s: float | None = None) -> list[Any]:
        """Results of one ref a worker, within a deadline."""
        return gather([(self, refs)], phase, timeout_s)[0]

    def result(self, ref: ray.ObjectRef, worker: int, phase: str) -> Any:
        """What a call returned that is known to have ended; its failure as one of ours, naming role, worker and phase."""
        try:
            return ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, InputError | RunError):
                raise type(error.cause)(str(error.cause)) from None
            raise RunError(self._failed(worker, phase, f"{type(error.cause).__name__}: {error.cause}", error)) from None
        except RayActorError as error:
            if not error.actor_init_failed:
                raise RunError(f"{self.role} worker {worker} died in `{phase}`: {' '.join(str(error).split())[:800]}") from None
            reason = str(error).strip().splitlines()[-1]  # of a constructor's error Ray keeps the traceback alone
            name, _, message = reason.partition(": ")
            for kind in (InputError, RunError):
                if name == f"{kind.__module__}.{kind.__name__}":
                    raise kind(message) from None
            raise RunError(self._failed(worker, phase, reason, error)) from None
        except RayError as error:  # ended by Ray for want of memory, or lost with its node
            raise RunError(f"{self.role} worker {worker} was lost in `{phase}`: {str(error).strip().splitlines()[0]}") from None

    def timed_out(self, worker: int, phase: str, limit_s: float) -> RunError:
        return RunError(
            f"{self.role} worker {worker} did not finish `{phase}` within {limit_s:g} s; "
            "look at its log under Ray's session directory, or raise cluster.step_timeout_s"
        )

    def peak_memory(self) -> list[int]:
        """Bytes, of each worker's process."""
        return self.call("peak_memory")

    def _failed(self, worker: int, phase: str, reason: str, error: Exception) -> str:
        return f"{self.role} worker {worker} failed in `{phase}`: {reason}\n{TERMINAL_COLOR.sub('', str(error))}"

    def stop(self) -> None:
        """End every process of the group and give its place back."""
        for worker in self.workers:
            ray.kill(worker)
        remove_placement_group(self._placement)


def gather(calls: list[tuple[Group, list[ray.ObjectRef]]], phase: str, timeout_s: float | None = None) -> list[list[Any]]:
    """Results of calls on one or more groups, one ref a worker, within a deadline. A failure names the role, the worker and the phase.

    All are watched at once: a worker that fails is reported at once, also while another waits for it in a collective.
    """
    limit = timeout_s or max(group.step_timeout_s for group, _ in calls)
    deadline = time.monotonic() + limit
    asked = {ref: (group, worker) for group, refs in calls for worker, ref in enumerate(refs)}
    found, pending = {}, list(asked)
    while pending:
        done, pending = ready(pending, deadline - time.monotonic())
        if not done:
            group, worker = asked[pending[0]]
            raise group.timed_out(worker, phase, limit)
        for ref in done:
            group, worker = asked[ref]
            found[ref] = group.result(ref, worker, phase)
    return [[found[ref] for ref in refs] for _, refs in calls]


def ready(watched: list[Any], timeout_s: float) -> tuple[list[Any], list[Any]]:
    """What of references and streams has a result, and the rest; the first is empty where nothing came in time.

    Looking at all of them costs some microseconds each, however many are ready: it is done once for many, not once for each.
    """
    done, waiting = ray.wait(watched, timeout=max(0.0, timeout_s))
    if done and waiting:
        more, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=PAUSE_S * len(waiting))
        done += more
    return done, waiting
