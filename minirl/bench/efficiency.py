"""Efficiency of a run: BenchResult, its rates for each device, and its ratios to lower bounds.

Every ratio compares two times of the same run on the same machine, so that ratios of different machines are comparable. 1 is the limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from minirl.model.microbatch import plan_microbatches

ROLES = ("rollout", "teacher", "learner")
VERBS = ("sample", "score", "credit", "update", "publish")
ROLE_OF = {"sample": "rollout", "score": "teacher", "credit": "learner", "update": "learner"}


@dataclass(frozen=True)
class Work:
    """One iteration's work of a role, measured while the other roles were idle.

    tokens: of responses alone for the rollout role. flops: what the models need for this work (`minirl.bench.model_flops`).
    """

    seconds: float
    tokens: float
    flops: float

    @property
    def rate(self) -> float:
        """Tokens/s."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Limit:
    """seconds: measured time of an operation. least: its lower bound, measured on the same work."""

    seconds: float
    least: float

    @property
    def ratio(self) -> float:
        return self.least / self.seconds


@dataclass(frozen=True)
class BenchResult:
    """The measurements of one run of `minirl bench`.

    sharing: sets of roles that run on the same devices or cores, where each slows the others down. One set of all roles where they share
    everything; three sets where each role has its own devices.
    devices: GPUs of each role; on CPUs its processes, each with its own threads. matmul_flops: FLOP/s of large matrix products on all
    devices of a role, in its dtype.
    iterations: the driver's log record of each measured iteration.
    alone: the work of one iteration, by role; and the sampling of equally long responses (no end token ends them) from `plain` (the
    student), `mixed` and `teacher_only`.
    limits: `learner` (missing where the bare model cannot run), `chunked_kl`, `publish`.
    publish_bytes: the size of one version of the weights. padding: the share of the learner's tokens that is padding, in [0, 1).
    memory: peak bytes of each process, by role.

    Where the scores come out of sampling, no measurement has the role `teacher`: its work is part of the rollout role's.
    """

    sharing: list[list[str]]
    devices: dict[str, int]
    matmul_flops: dict[str, float]
    max_staleness: int
    epochs_per_iteration: int
    iterations: list[dict[str, float]]
    alone: dict[str, Work]
    limits: dict[str, Limit]
    publish_bytes: int
    padding: float
    memory: dict[str, list[int]]

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that compute for themselves."""
        return tuple(role for role in ROLES if role in self.alone)

    def loop(self, key: str) -> float:
        """The median of a logged value over the measured iterations."""
        return median(record[key] for record in self.iterations)

    def loop_tokens(self, role: str) -> float:
        """Tokens that a role processes in an iteration of the loop."""
        return median(self._tokens(record, role) for record in self.iterations)

    def loop_rate(self, role: str) -> float:
        """Tokens/s of a role in the loop, over the time in which it computes."""
        return median(self._tokens(record, role) / record[f"{role}/busy_seconds"] for record in self.iterations)

    def idle(self, role: str) -> float:
        """The share of an iteration in which a role computes nothing. On shared cores it mostly waits for the other roles."""
        return median(max(0.0, 1 - record[f"{role}/busy_seconds"] / record["time/iteration"]) for record in self.iterations)

    def alone_seconds(self, role: str) -> float:
        """Seconds that the loop's work would take alone. Scaled by tokens, because responses vary in length."""
        return self.loop_tokens(role) / self.alone[role].rate

    def verb_seconds(self) -> dict[str, float]:
        """Seconds that the driver waits in each verb of the median iteration; under `driver`, the rest of the iteration."""
        return {verb: self.loop(f"time/{verb}") for verb in VERBS} | {"driver": median(map(driver_seconds, self.iterations))}

    @property
    def shares_cores(self) -> bool:
        return any(len(roles) > 1 for roles in self.sharing)

    def efficiency(self) -> float:
        """The lower bound of an iteration over its time. Roles that share devices add up; the others run at the same time."""
        return median(
            max(sum(self._tokens(record, role) / self.alone[role].rate for role in roles) for roles in self.sharing)
            / record["time/iteration"]
            for record in self.iterations
        )

    def bound_by(self) -> list[str]:
        """The roles on the busiest devices: their time is the lower bound of an iteration."""
        return max(self.sharing, key=lambda roles: sum(map(self.alone_seconds, roles)))

    def slowest(self) -> str:
        """The role whose work takes longest alone."""
        return max(self.roles, key=self.alone_seconds)

    def _tokens(self, record: dict[str, float], role: str) -> float:
        if role == "rollout":
            return record["rollout/response_tokens"]
        return record["rollout/tokens"] * (self.epochs_per_iteration if role == "learner" else 1)


@dataclass(frozen=True)
class DeviceRates:
    """What one device of a role does.

    tokens_per_second: of the role alone. loop_tokens_per_second: in the loop, over the time in which the role computes. matmul_flops:
    FLOP/s of large matrix products. mfu, loop_mfu: model FLOPs utilisation, the FLOP/s that the role's models need over `matmul_flops`.
    """

    devices: int
    tokens_per_second: float
    loop_tokens_per_second: float
    matmul_flops: float
    mfu: float
    loop_mfu: float


def rates_of(result: BenchResult, role: str) -> DeviceRates:
    work, devices, loop_rate = result.alone[role], result.devices[role], result.loop_rate(role)
    mfu = work.flops / work.seconds / result.matmul_flops[role]
    matmul_flops = result.matmul_flops[role] / devices
    return DeviceRates(devices, work.rate / devices, loop_rate / devices, matmul_flops, mfu, mfu * loop_rate / work.rate)


@dataclass(frozen=True)
class Ratio:
    """A measured ratio. goal: its smallest acceptable value, or its upper bound with `at_most`; None: no goal."""

    value: float
    meaning: str
    goal: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value < self.goal if self.at_most else self.value >= self.goal


def ratios(result: BenchResult) -> dict[str, Ratio]:
    """All ratios of a run, by name."""
    bound = " + ".join(result.bound_by())
    mixed = result.alone["mixed"].rate * sum(1 / result.alone[name].rate for name in ("plain", "teacher_only"))
    overhead = median(driver_seconds(record) / record["time/iteration"] for record in result.iterations)
    publishing = median(record["time/publish"] / record["time/iteration"] for record in result.iterations)
    ratios_by_name = {
        "efficiency": Ratio(result.efficiency(), f"{bound} alone / iteration", 0.8 if result.shares_cores else 0.9),
        "mixed": Ratio(mixed, "rate / (1 / (1/student + 1/teacher))", 0.95),
    }
    for name, (meaning, goal) in LIMITS.items():
        if name in result.limits:
            ratios_by_name[name] = Ratio(result.limits[name].ratio, meaning, goal)
    return ratios_by_name | {
        "publish_share": Ratio(publishing, "publish / iteration", 0.05, at_most=True),
        "driver_overhead": Ratio(overhead, "beside the verbs / iteration", 0.01, at_most=True),
    }


LIMITS = {  # of BenchResult.limits: the ratio's meaning, and its goal
    "learner": ("bare forward + backward / update", 0.85),
    "chunked_kl": ("bare products / chunked KL", None),
    "publish": ("memory copy / publish", None),
}


def driver_seconds(record: dict[str, float]) -> float:
    """Seconds of an iteration outside the five verbs."""
    return record["time/iteration"] - sum(record[f"time/{verb}"] for verb in VERBS)


def group_roles_by_device(devices_by_role: dict[str, set]) -> list[list[str]]:
    """Sets of roles that share devices or cores. devices_by_role: the devices of each role's processes, or their cores without devices."""
    sets: list[list[str]] = []
    for role, devices in devices_by_role.items():
        overlapping = [roles for roles in sets if any(devices_by_role[other] & devices for other in roles)]
        sets = [roles for roles in sets if roles not in overlapping] + [[*sum(overlapping, []), role]]
    return sets


def padding_share(lengths: Sequence[int], workers: int, tokens_per_microbatch: int) -> float:
    """The share of padding among the tokens that an optimizer step computes. lengths: of its sequences."""
    plans = plan_microbatches(lengths, workers, tokens_per_microbatch)
    computed = sum(len(batch) * max(lengths[i] for i in batch) for plan in plans for batch in plan if batch)
    return 1 - sum(lengths) / computed


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"
