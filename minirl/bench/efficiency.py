"""How near a run comes to its limits: ratios from one set of measurements, and the one change that would help most.

Every ratio compares two times of the same run on the same machine, so that it means the same on any machine. 1 is the limit.
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
    """What a role did while the others were idle. seconds: of one iteration's work; tokens: of that work, responses alone for rollout."""

    seconds: float
    tokens: float

    @property
    def rate(self) -> float:
        """Tokens/s."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Limit:
    """seconds: what something takes; least: what it could not take less than, measured beside it on the same work."""

    seconds: float
    least: float

    @property
    def ratio(self) -> float:
        return self.least / self.seconds


@dataclass(frozen=True)
class BenchResult:
    """One run of `minirl bench`.

    sharing: the roles in sets that stand on the same devices or cores, where one computes at the expense of the others; one set on a
    machine where they take turns, three where each has devices of its own. iterations: what the driver logged of each measured
    iteration. alone: the work of one iteration by role, and what an engine samples where no end token ends a response: `plain` (the
    student), `mixed`, `teacher_only`. limits: `learner` (missing where the bare model cannot be run), `chunked_kl`, `publish`.
    publish_bytes: of one version of the weights. padding: the share of the learner's tokens that is padding, in [0, 1). memory: peak
    bytes of each process, by role.
    """

    sharing: list[list[str]]
    max_staleness: int
    epochs_per_iteration: int
    iterations: list[dict[str, float]]
    alone: dict[str, Work]
    limits: dict[str, Limit]
    publish_bytes: int
    padding: float
    memory: dict[str, list[int]]

    def loop(self, key: str) -> float:
        """The median over the measured iterations."""
        return median(record[key] for record in self.iterations)

    def loop_tokens(self, role: str) -> float:
        return median(self._tokens(record, role) for record in self.iterations)

    def loop_rate(self, role: str) -> float:
        """Tokens/s of a role while it computes, in the running loop."""
        return median(self._tokens(record, role) / record[f"{role}/busy_seconds"] for record in self.iterations)

    def idle(self, role: str) -> float:
        """The share of an iteration in which a role computes nothing; on shared cores that is mostly waiting for its turn."""
        return median(max(0.0, 1 - record[f"{role}/busy_seconds"] / record["time/iteration"]) for record in self.iterations)

    def alone_seconds(self, role: str) -> float:
        """What the loop's work would take alone; responses vary in length, so by tokens."""
        return self.loop_tokens(role) / self.alone[role].rate

    def verb_seconds(self) -> dict[str, float]:
        """What the driver waits for in the median iteration, and under `driver` all the rest of it."""
        return {verb: self.loop(f"time/{verb}") for verb in VERBS} | {"driver": median(map(driver_seconds, self.iterations))}

    @property
    def shares_cores(self) -> bool:
        return any(len(roles) > 1 for roles in self.sharing)

    def efficiency(self) -> float:
        """The least that an iteration could take, over what it takes: those that share add up, the others go on at once."""
        return median(
            max(sum(self._tokens(record, role) / self.alone[role].rate for role in roles) for roles in self.sharing)
            / record["time/iteration"]
            for record in self.iterations
        )

    def bound_by(self) -> list[str]:
        """The roles on the devices that are needed longest."""
        return max(self.sharing, key=lambda roles: sum(map(self.alone_seconds, roles)))

    def slowest(self) -> str:
        return max(ROLES, key=self.alone_seconds)

    def _tokens(self, record: dict[str, float], role: str) -> float:
        if role == "rollout":
            return record["rollout/response_tokens"]
        return record["rollout/tokens"] * (self.epochs_per_iteration if role == "learner" else 1)


@dataclass(frozen=True)
class Ratio:
    """goal: the least that is good enough, or with `at_most` the most; None where there is none."""

    value: float
    meaning: str
    goal: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value < self.goal if self.at_most else self.value >= self.goal


def ratios(m: BenchResult) -> dict[str, Ratio]:
    bound = " + ".join(m.bound_by())
    mixed = m.alone["mixed"].rate * sum(1 / m.alone[name].rate for name in ("plain", "teacher_only"))
    overhead = median(driver_seconds(record) / record["time/iteration"] for record in m.iterations)
    publishing = median(record["time/publish"] / record["time/iteration"] for record in m.iterations)
    found = {
        "efficiency": Ratio(m.efficiency(), f"{bound} alone / iteration", 0.8 if m.shares_cores else 0.9),
        "mixed": Ratio(mixed, "rate / (1 / (1/student + 1/teacher))", 0.95),
    }
    for name, (meaning, goal) in LIMITS.items():
        if name in m.limits:
            found[name] = Ratio(m.limits[name].ratio, meaning, goal)
    return found | {
        "publish_share": Ratio(publishing, "publish / iteration", 0.05, at_most=True),
        "driver_overhead": Ratio(overhead, "beside the verbs / iteration", 0.01, at_most=True),
    }


LIMITS = {
    "learner": ("bare forward + backward / update", 0.85),
    "chunked_kl": ("bare products / chunked KL", None),
    "publish": ("memory copy / publish", None),
}


def driver_seconds(record: dict[str, float]) -> float:
    """What an iteration took beside the five verbs."""
    return record["time/iteration"] - sum(record[f"time/{verb}"] for verb in VERBS)


def sharing(places: dict[str, set]) -> list[list[str]]:
    """The roles in sets that stand on common devices or cores. places: the devices, or else the cores, of each role's processes."""
    sets: list[list[str]] = []
    for role, mine in places.items():
        touched = [roles for roles in sets if any(places[other] & mine for other in roles)]
        sets = [roles for roles in sets if roles not in touched] + [[*sum(touched, []), role]]
    return sets


def padding_share(lengths: Sequence[int], workers: int, tokens_per_microbatch: int) -> float:
    """The share of a step's computed tokens that is padding, for sequences of these lengths."""
    plans = plan_microbatches(lengths, workers, tokens_per_microbatch)
    computed = sum(len(batch) * max(lengths[i] for i in batch) for plan in plans for batch in plan if batch)
    return 1 - sum(lengths) / computed


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def advice(m: BenchResult) -> str:
    """One sentence: what costs most beside the roles' own work, or where that has no fault, the part that is largest."""
    found = ratios(m)
    overhead, publishing = found["driver_overhead"].value, found["publish_share"].value
    if overhead > 0.05:
        return f"driver {percent(overhead)}: raise stages.distill.prompts_per_iteration, so that an iteration has more work for each call"
    if publishing > 0.1:
        return f"publishing {percent(publishing)}: raise stages.distill.prompts_per_iteration, so that weights travel less often"
    if m.padding > 0.25:
        return f"padding {percent(m.padding)} of the learner's tokens: lower learner.tokens_per_microbatch, so that like lengths meet"
    return _advice_on_shared_cores(m) if m.shares_cores else _advice_on_own_devices(m)


def _advice_on_own_devices(m: BenchResult) -> str:
    slowest = m.slowest()
    idle = {role: m.idle(role) for role in ROLES}
    idlest = max(ROLES, key=idle.get)
    found = f"{idlest} idle {percent(idle[idlest])}"
    if idle[idlest] < 0.1:
        return "no role is idle for a tenth of the time: only more devices for all of them make an iteration shorter"
    if idle[slowest] < 0.25:
        return f"{found}: raise {slowest}.workers or {_less_work(m, slowest)}"
    if m.max_staleness == 0:
        return f"{found}, {slowest} {percent(idle[slowest])} too: set stages.distill.max_staleness: 1, so that sampling goes on meanwhile"
    return f"{found}, {slowest} {percent(idle[slowest])} too: raise stages.distill.prompts_per_iteration, so that waiting weighs less"


def _advice_on_shared_cores(m: BenchResult) -> str:
    """More workers or more overlap would take the cores from each other: only less work helps."""
    efficiency = ratios(m)["efficiency"]
    if m.max_staleness > 0 and not efficiency.met:
        return f"efficiency {efficiency.value:.2f}: set stages.distill.max_staleness: 0, since roles that share cores hinder each other"
    largest = m.slowest()
    share = m.alone_seconds(largest) / m.loop("time/iteration")
    return f"{largest} {percent(share)} of an iteration: {_less_work(m, largest)}; roles share cores, so more workers do not help"


def _less_work(m: BenchResult, role: str) -> str:
    if role == "rollout":
        return "lower data.max_response_tokens"
    if role == "teacher":
        return "take a smaller teacher"
    learner = ratios(m).get("learner")
    if learner and not learner.met:
        return "raise learner.tokens_per_microbatch"
    return "lower stages.distill.epochs_per_iteration" if m.epochs_per_iteration > 1 else "take a smaller student"
