"""All Ray processes of one role: started together, called with a deadline, ended together."""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from minirl.errors import InputError, RunError


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
        remote = ray.remote(worker_class)
        self.workers = [
            remote.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._placement, index),
                runtime_env={"env_vars": environment},
            ).remote(**keywords(index))
            for index in range(workers)
        ]

    def wait_started(self) -> None:
        """Block until every constructor has returned."""
        self.get([worker.__ray_ready__.remote() for worker in self.workers], "start", self.start_timeout_s)

    def call(self, method: str, *arguments: Any, phase: str | None = None, timeout_s: float | None = None) -> list[Any]:
        """The same call on every worker; its results in order of workers."""
        return self.get([getattr(worker, method).remote(*arguments) for worker in self.workers], phase or method, timeout_s)

    def get(self, refs: list[ray.ObjectRef], phase: str, timeout_s: float | None = None) -> list[Any]:
        """Results of one ref a worker, within a deadline. A failure names the role, the worker and the phase.

        All are watched at once: a worker that fails is reported at once, also while another waits for it in a collective.
        """
        deadline = time.monotonic() + (timeout_s or self.step_timeout_s)
        pending = list(refs)
        while pending:
            done, pending = ray.wait(pending, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                late = [refs.index(ref) for ref in pending]
                raise RunError(
                    f"{self.role} worker {late[0]} did not finish `{phase}` within {timeout_s or self.step_timeout_s:g} s; "
                    "look at its log under Ray's session directory, or raise cluster.step_timeout_s"
                )
            for ref in done:
                self._value(ref, refs.index(ref), phase)
        return [ray.get(ref) for ref in refs]

    def _value(self, ref: ray.ObjectRef, worker: int, phase: str) -> Any:
        try:
            return ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, InputError | RunError):
                raise type(error.cause)(str(error.cause)) from None
            raise RunError(f"{self.role} worker {worker} failed in `{phase}`: {error}") from None
        except RayActorError as error:
            raise RunError(f"{self.role} worker {worker} died in `{phase}`: {' '.join(str(error).split())[:800]}") from None

    def stop(self) -> None:
        """End every process of the group and give its place back."""
        for worker in self.workers:
            ray.kill(worker)
        remove_placement_group(self._placement)
