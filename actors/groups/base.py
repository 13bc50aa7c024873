"""Group: all Ray processes of one role, started together, called with a deadline and stopped together."""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.groups.placement import Places
from minirl.errors import InputError, RunError, without_colors

PAUSE_S = 1e-4  # pause of `ready` per pending reference; looking at a reference takes a fiftieth of that


class Group:
    """Ray processes that each hold one `worker_class(**keywords(index))`, at the places that were reserved for them.

    environment: variables of each worker process.
    """

    def __init__(
        self,
        role: str,
        worker_class: type,
        keywords: Callable[[int], dict[str, Any]],
        *,
        places: Places,
        environment: Callable[[int], dict[str, str]],
        start_timeout_s: float,
        step_timeout_s: float,
    ):
        self.role, self.step_timeout_s, self.start_timeout_s = role, step_timeout_s, start_timeout_s
        self._places, remote = places, self.remote_class(worker_class)
        self.workers = [
            remote.options(**places.of_worker(index), runtime_env={"env_vars": environment(index)}).remote(**keywords(index))
            for index in range(places.workers)
        ]

    def remote_class(self, worker_class: type) -> Any:
        """The Ray class from which the worker processes are created."""
        return ray.remote(worker_class)

    def wait_started(self) -> None:
        """Blocks until every constructor has returned."""
        self.get([worker.__ray_ready__.remote() for worker in self.workers], "start", self.start_timeout_s)

    def begin_call(self, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """Starts the same call on every worker and returns one reference each, without waiting."""
        return [getattr(worker, method).remote(*arguments) for worker in self.workers]

    def call(self, method: str, *arguments: Any, phase: str | None = None, timeout_s: float | None = None) -> list[Any]:
        """Makes the same call on every worker, waits, and returns the results in the order of the workers."""
        return self.get(self.begin_call(method, *arguments), phase or method, timeout_s)

    def get(self, refs: list[ray.ObjectRef], phase: str, timeout_s: float | None = None) -> list[Any]:
        """Waits for one reference per worker and returns the results. Raises RunError after timeout_s (default: step_timeout_s)."""
        return gather([(self, refs)], phase, timeout_s)[0]

    def result(self, ref: ray.ObjectRef, worker: int, phase: str) -> Any:
        """The result of a call that has ended.

        Raises the worker's own InputError or RunError unchanged. Any other failure becomes a RunError that names role, worker and phase.
        """
        try:
            return ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, InputError | RunError):
                raise type(error.cause)(str(error.cause)) from None
            raise RunError(self._failure_message(worker, phase, f"{type(error.cause).__name__}: {error.cause}", error)) from None
        except RayActorError as error:
            if not error.actor_init_failed:
                raise RunError(f"{self.role} worker {worker} died in `{phase}`: {' '.join(str(error).split())[:800]}") from None
            reason = str(error).strip().splitlines()[-1]  # Ray keeps only the traceback of a constructor's error
            name, _, message = reason.partition(": ")
            for kind in (InputError, RunError):
                if name == f"{kind.__module__}.{kind.__name__}":
                    raise kind(message) from None
            raise RunError(self._failure_message(worker, phase, reason, error)) from None
        except RayError as error:  # Ray killed the worker because memory ran out, or its node is gone
            raise RunError(f"{self.role} worker {worker} was lost in `{phase}`: {str(error).strip().splitlines()[0]}") from None

    def timeout_error(self, worker: int, phase: str, limit_s: float) -> RunError:
        key = "start_timeout_s" if phase == "start" else "step_timeout_s"
        return RunError(
            f"{self.role} worker {worker} did not finish `{phase}` within {limit_s:g} s; "
            f"look at its log under Ray's session directory, or raise cluster.{key}"
        )

    def peak_memory(self) -> list[int]:
        """The largest memory use of each worker process so far, in bytes."""
        return self.call("peak_memory")

    def _failure_message(self, worker: int, phase: str, reason: str, error: Exception) -> str:
        return f"{self.role} worker {worker} failed in `{phase}`: {reason}\n{without_colors(str(error))}"

    def stop(self) -> None:
        """Kills every process of the group and returns its resources to the cluster."""
        for worker in self.workers:
            ray.kill(worker)
        self._places.release()


def gather(calls: list[tuple[Group, list[ray.ObjectRef]]], phase: str, timeout_s: float | None = None) -> list[list[Any]]:
    """Waits for calls on one or more groups, one reference per worker. Raises RunError that names role, worker and phase on a failure, and
    after timeout_s (default: the largest step_timeout_s of the groups).

    Watches all references together, so that a failed worker is reported at once, even while others wait for it in a collective.
    """
    limit = timeout_s or max(group.step_timeout_s for group, _ in calls)
    deadline = time.monotonic() + limit
    callees = {ref: (group, worker) for group, refs in calls for worker, ref in enumerate(refs)}
    results, pending = {}, list(callees)
    while pending:
        done, pending = ready(pending, deadline - time.monotonic())
        if not done:
            group, worker = callees[pending[0]]
            raise group.timeout_error(worker, phase, limit)
        for ref in done:
            group, worker = callees[ref]
            results[ref] = group.result(ref, worker, phase)
    return [[results[ref] for ref in refs] for _, refs in calls]


def ready(refs: list[Any], timeout_s: float) -> tuple[list[Any], list[Any]]:
    """Splits references and streams into those that have a result and the others. The first list is empty after timeout_s without a result.

    One look costs some microseconds per reference, however many are ready. A short pause after the first result lets one look serve many.
    """
    done, pending = ray.wait(refs, timeout=max(0.0, timeout_s))
    if done and pending:
        more, pending = ray.wait(pending, num_returns=len(pending), timeout=PAUSE_S * len(pending))
        done += more
    return done, pending
