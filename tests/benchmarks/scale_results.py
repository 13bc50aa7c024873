"""What a simulation of one size found: from the workers' journals to numbers, tables and files."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from minirl.bench.efficiency import ROLES, VERBS
from minirl.files import write_json
from minirl.tables import Table
from tests.benchmarks.sleeping import Call, Many, Sleeps

WORKERS_BY_ROLE = {"rollout": 1, "teacher": 4, "learner": 4}  # so many rollout workers to one of these
PROMPT_TOKENS, RESPONSE_TOKENS = 128, 256  # responses: at most
MEAN_TOKENS = PROMPT_TOKENS + 0.625 * RESPONSE_TOKENS
HIDDEN, WEIGHT_BYTES, BUCKETS = 1600, 2 * 124_439_808, 4  # GPT-2 XL teaches GPT-2; right-shaped up to SHAPED workers
SHAPED, SHRUNK_HIDDEN, SHRUNK_WEIGHTS = 8, 128, 4 * 2**20
# Seconds of the slowest role, as shares by role: which one is slowest.
CASES = {"sampling": (1.0, 0.6, 0.8), "learning": (0.6, 0.6, 1.0), "none": (1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class Scale:
    """One measurement: its size and shape."""

    workers: int
    rollouts_per_worker: int
    case: str
    max_staleness: int
    seconds: float

    @property
    def rollouts(self) -> int:
        return self.workers * self.rollouts_per_worker

    def workers_of(self, role: str) -> int:
        return max(1, self.workers // WORKERS_BY_ROLE[role])

    @property
    def sleeps(self) -> Sleeps:
        sampling, scoring, learning = (share * self.seconds for share in CASES[self.case])
        tokens = self.rollouts * MEAN_TOKENS
        shaped = self.workers <= SHAPED
        return Sleeps(
            sampling=sampling,
            scoring=scoring * self.workers_of("teacher") / tokens,
            learning=learning * self.workers_of("learner") / tokens,
            loading=0.002 * self.seconds / BUCKETS,
            hidden=HIDDEN if shaped else SHRUNK_HIDDEN,
            bucket_bytes=(WEIGHT_BYTES if shaped else SHRUNK_WEIGHTS) // BUCKETS,
            buckets=BUCKETS,
        )


@dataclass(frozen=True)
class Found:
    """Means over the measured iterations.

    iteration: seconds. alone: seconds of each role's work, as configured. verbs: seconds that the driver waited in each.
    driver_own: seconds of CPU of the driver's loop and of its collection. driver_cpu: the same with all of Ray's threads beside it.
    driver_alone: seconds in which no worker of any role did anything. idle: of a role's workers, as a share of the iteration. delay: by
    role, seconds from when a call was made and its worker free to when it began, median and 95th percentile. stored: bytes that went
    through the object store. real: the same with payloads of the real shape.
    """

    scale: Scale
    iteration: float
    alone: dict[str, float]
    verbs: dict[str, float]
    driver_own: float
    driver_cpu: float
    driver_alone: float
    idle: dict[str, float]
    delay: dict[str, tuple[float, float]]
    stored: float
    real: float

    @property
    def efficiency(self) -> float:
        return max(self.alone.values()) / self.iteration

    def per_rollout(self, seconds: float) -> float:
        """In milliseconds."""
        return 1000 * seconds / self.scale.rollouts


def by_worker(group: Many) -> dict[int, list[Call]]:
    journal: dict[int, list[Call]] = {}
    for call in sorted(group.take_journal(), key=lambda call: call.began):
        journal.setdefault(call.worker, []).append(call)
    return journal


Clock = tuple[float, float, float]  # seconds: monotonic, of CPU of this process, of CPU of the driver's main thread


def found_in(scale: Scale, records: list[dict], clock: list[Clock], collecting: float, journals: dict[str, dict[int, list[Call]]]) -> Found:
    """records: of the measured iterations; clock: before the first and after each; collecting: CPU seconds of a collection's thread."""
    (start, cpu_start, own_start), (end, cpu_end, own_end) = clock[0], clock[-1]
    count, sleeps = len(records), scale.sleeps
    tokens, responses = (float(np.mean([record[key] for record in records])) for key in ("rollout/tokens", "rollout/response_tokens"))
    alone = {
        "rollout": sleeps.sampling,
        "teacher": sleeps.scoring * tokens / scale.workers_of("teacher"),
        "learner": sleeps.learning * tokens / scale.workers_of("learner"),
    }
    spans = {role: [_within(call, start, end) for calls in journal.values() for call in calls] for role, journal in journals.items()}
    busy = {role: sum(max(0.0, stop - begin) for begin, stop in found) for role, found in spans.items()}
    keys = ("rollout/payload_bytes", "teacher/payload_bytes", "publish/bytes")
    return Found(
        scale=scale,
        iteration=(end - start) / count,
        alone=alone,
        verbs={verb: float(np.mean([record[f"time/{verb}"] for record in records])) for verb in VERBS},
        driver_own=(own_end - own_start) / count + collecting,
        driver_cpu=(cpu_end - cpu_start) / count,
        driver_alone=(end - start - covered([span for found in spans.values() for span in found])) / count,
        idle={role: 1 - busy[role] / (end - start) / scale.workers_of(role) for role in ROLES},
        delay={role: _delay(journal, start, end) for role, journal in journals.items()},
        stored=float(np.mean([sum(record[key] for key in keys) for record in records])),
        real=real_bytes(tokens, responses),
    )


def real_bytes(tokens: float, responses: float) -> float:
    """What an iteration of so many tokens, so many of them in responses, sends through the object store; see `Rollout`, `TeacherScores`."""
    return 8 * tokens + 4 * responses + responses * (4 + 4 + 2 * HIDDEN) + WEIGHT_BYTES


def _within(call: Call, start: float, end: float) -> tuple[float, float]:
    return max(call.began, start), min(call.ended, end)


def covered(spans: list[tuple[float, float]]) -> float:
    """Seconds that lie in at least one of the spans."""
    total, reached = 0.0, float("-inf")
    for begin, stop in sorted(span for span in spans if span[0] < span[1]):
        total += max(0.0, stop - max(begin, reached))
        reached = max(reached, stop)
    return total


def _delay(journal: dict[int, list[Call]], start: float, end: float) -> tuple[float, float]:
    pairs = [pair for calls in journal.values() for pair in pairwise(calls) if start <= pair[1].began <= end]
    delays = [after.began - max(before.ended, after.asked) for before, after in pairs]
    return tuple(np.percentile(delays, (50, 95)).tolist()) if delays else (0.0, 0.0)


def growth(found: list[Found]) -> float | None:
    """The exponent e of driver CPU ~ rollouts ** e over the sizes, by least squares; 1 is linear."""
    if len({one.scale.rollouts for one in found}) < 2:
        return None
    return float(np.polyfit(np.log([f.scale.rollouts for f in found]), np.log([f.driver_cpu for f in found]), 1)[0])


def tables(found: list[Found]) -> list[Table]:
    names = [(f"{f.scale.workers:,}", f.scale.case, str(f.scale.max_staleness)) for f in found]
    times = [
        (
            *name,
            f"{max(f.alone.values()):.2f}",
            f"{f.iteration:.2f}",
            f"{f.efficiency:.2f}",
            *(f"{100 * f.idle[role]:.0f} %" for role in ROLES),
        )
        for name, f in zip(names, found, strict=True)
    ]
    costs = [
        (
            *name,
            f"{f.per_rollout(f.driver_own):.2f}",
            f"{f.per_rollout(f.driver_cpu):.2f}",
            f"{f.per_rollout(f.driver_alone):.2f}",
            *("{:.0f}/{:.0f}".format(*(1000 * d for d in f.delay[role])) for role in ROLES),
        )
        for name, f in zip(names, found, strict=True)
    ]
    sizes = {f.scale.workers: (f"{f.scale.workers:,}", f"{f.stored / 2**20:,.0f}", f"{f.real / 2**20:,.0f}") for f in found}
    first, each = ("workers", "slowest", "k"), found[0].scale.rollouts_per_worker
    return [
        Table(
            f"Iterations at max_staleness k, in seconds; idle workers; {each} rollouts each",
            (*first, "alone", "loop", "eff.", *ROLES),
            times,
        ),
        Table("Driver, in ms a rollout; delay of calls, in ms, median/95 %", (*first, "own", "CPU", "wait", *ROLES), costs),
        Table("Object store, in MiB an iteration", ("workers", "stored here", "with real shapes"), list(sizes.values())),
    ]


def verdict(found: list[Found]) -> str:
    main = _main(found)
    exponent = growth(main)
    grown = "" if exponent is None else f"driver CPU grows as rollouts^{exponent:.2f}; "
    worst = max(f.per_rollout(f.driver_cpu) for f in main)
    return f"{grown}at most {worst:.2f} ms a rollout; efficiency with overlap at least {min(f.efficiency for f in main):.2f}"


def _main(found: list[Found]) -> list[Found]:
    """One a size: with overlap, sampling the slowest, as far ahead as the first of them."""
    overlapped = [f for f in found if f.scale.case == "sampling" and f.scale.max_staleness > 0]
    return [f for f in overlapped if f.scale.max_staleness == overlapped[0].scale.max_staleness]


def save(directory: Path, found: list[Found]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    told = [asdict(one) | {"efficiency": one.efficiency, "sleeps": asdict(one.scale.sleeps)} for one in found]
    main = _main(found)
    write_json(directory / "scale.json", {"verdict": verdict(found), "growth": growth(main), "found": told})
    parts = ["# Scale, by simulation", "", verdict(found), "", *(table.markdown() for table in tables(found))]
    (directory / "scale.md").write_text("\n".join(parts))


def told(one: Found) -> str:
    """A line while the benchmark goes on."""
    scale = one.scale
    size = f"{scale.workers:,} x {scale.rollouts_per_worker}, slowest {scale.case}, staleness {scale.max_staleness}"
    return f"{size}: {one.iteration:.2f} s, efficiency {one.efficiency:.2f}, {one.per_rollout(one.driver_cpu):.2f} ms a rollout"
