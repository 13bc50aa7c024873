"""Results of the scale simulation: from log records and the workers' journals to numbers, tables and files."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from minirl.bench.efficiency import ROLES, VERBS
from minirl.files import write_json
from minirl.tables import Table
from tests.benchmarks.sleeping import RecordedCall, SimulatedGroup, SleepTimes

WORKERS_BY_ROLE = {"rollout": 1, "teacher": 4, "learner": 4}  # rollout workers for each worker of the role
PROMPT_TOKENS, RESPONSE_TOKENS = 128, 256  # RESPONSE_TOKENS: the longest response
MEAN_TOKENS = PROMPT_TOKENS + 0.625 * RESPONSE_TOKENS
HIDDEN, WEIGHT_BYTES, BUCKETS = 1600, 2 * 124_439_808, 4  # the shapes of teacher GPT-2 XL and student GPT-2
REAL_SHAPES_UP_TO = 8  # rollout workers; with more of them, hidden states and weights are shrunk
SHRUNK_HIDDEN, SHRUNK_WEIGHTS = 128, 4 * 2**20
# By what is slowest: the times of (rollout, teacher, learner) as shares of the slowest role's time.
CASES = {"sampling": (1.0, 0.6, 0.8), "learning": (0.6, 0.6, 1.0), "none": (1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class ScaleSetting:
    """The setting of one measurement. workers: of the rollout group. case: a key of `CASES`. seconds: of the slowest role."""

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
    def sleep_times(self) -> SleepTimes:
        sampling, scoring, learning = (share * self.seconds for share in CASES[self.case])
        tokens = self.rollouts * MEAN_TOKENS
        real_shapes = self.workers <= REAL_SHAPES_UP_TO
        return SleepTimes(
            sampling=sampling,
            scoring=scoring * self.workers_of("teacher") / tokens,
            learning=learning * self.workers_of("learner") / tokens,
            loading=0.002 * self.seconds / BUCKETS,
            hidden=HIDDEN if real_shapes else SHRUNK_HIDDEN,
            bucket_bytes=(WEIGHT_BYTES if real_shapes else SHRUNK_WEIGHTS) // BUCKETS,
            buckets=BUCKETS,
        )


@dataclass(frozen=True)
class ScaleResult:
    """Means over the measured iterations.

    iteration: seconds of an iteration. alone: seconds of each role's work, as configured. verbs: seconds that the driver waited in each
    verb. driver_own: CPU seconds of the driver's loop and of its collection thread. driver_cpu: CPU seconds of the driver's process,
    including Ray's threads. driver_alone: seconds in which no worker of any role did anything. idle: by role, the idle share of its
    workers' time. delay: by role, seconds from the moment when a call is submitted and its worker is free until the call starts, median
    and 95th percentile. stored: bytes that went through the object store. real: the same with payloads of the real shapes.
    """

    scale: ScaleSetting
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
        """Milliseconds per rollout."""
        return 1000 * seconds / self.scale.rollouts


Clocks = tuple[float, float, float]  # seconds: monotonic, CPU of this process, CPU of the driver's main thread
Journal = dict[int, list[RecordedCall]]  # the calls of each worker of a role


def calls_by_worker(group: SimulatedGroup) -> Journal:
    """The group's recorded calls by worker, in the order of their starts."""
    calls: Journal = {}
    for call in sorted(group.take_journal(), key=lambda call: call.started):
        calls.setdefault(call.worker, []).append(call)
    return calls


def summarize(
    setting: ScaleSetting, records: list[dict], clocks: list[Clocks], collection_cpu: float, journals: dict[str, Journal]
) -> ScaleResult:
    """The result of one measurement.

    records: of the measured iterations. clocks: before the first of them and after each. collection_cpu: CPU seconds of a collection's
    thread. journals: by role.
    """
    (start, cpu_start, thread_start), (end, cpu_end, thread_end) = clocks[0], clocks[-1]
    count, sleep_times = len(records), setting.sleep_times
    tokens, responses = (float(np.mean([record[key] for record in records])) for key in ("rollout/tokens", "rollout/response_tokens"))
    alone = {
        "rollout": sleep_times.sampling,
        "teacher": sleep_times.scoring * tokens / setting.workers_of("teacher"),
        "learner": sleep_times.learning * tokens / setting.workers_of("learner"),
    }
    spans = {role: [_clipped_span(call, start, end) for calls in journal.values() for call in calls] for role, journal in journals.items()}
    busy = {role: sum(max(0.0, stop - begin) for begin, stop in role_spans) for role, role_spans in spans.items()}
    keys = ("rollout/payload_bytes", "teacher/payload_bytes", "publish/bytes")
    return ScaleResult(
        scale=setting,
        iteration=(end - start) / count,
        alone=alone,
        verbs={verb: float(np.mean([record[f"time/{verb}"] for record in records])) for verb in VERBS},
        driver_own=(thread_end - thread_start) / count + collection_cpu,
        driver_cpu=(cpu_end - cpu_start) / count,
        driver_alone=(end - start - covered_seconds([span for role_spans in spans.values() for span in role_spans])) / count,
        idle={role: 1 - busy[role] / (end - start) / setting.workers_of(role) for role in ROLES},
        delay={role: _delay(journal, start, end) for role, journal in journals.items()},
        stored=float(np.mean([sum(record[key] for key in keys) for record in records])),
        real=real_bytes(tokens, responses),
    )


def real_bytes(tokens: float, responses: float) -> float:
    """Bytes that an iteration sends through the object store with real shapes; see `Rollout` and `TeacherScores`.

    tokens: of its rollouts, with prompts. responses: response tokens.
    """
    return 8 * tokens + 4 * responses + responses * (4 + 4 + 2 * HIDDEN) + WEIGHT_BYTES


def _clipped_span(call: RecordedCall, start: float, end: float) -> tuple[float, float]:
    return max(call.started, start), min(call.ended, end)


def covered_seconds(spans: list[tuple[float, float]]) -> float:
    """Seconds that lie in at least one of the spans. Spans that end before they begin do not count."""
    total, covered_until = 0.0, float("-inf")
    for begin, stop in sorted(span for span in spans if span[0] < span[1]):
        total += max(0.0, stop - max(begin, covered_until))
        covered_until = max(covered_until, stop)
    return total


def _delay(journal: Journal, start: float, end: float) -> tuple[float, float]:
    """Median and 95th percentile of the delays of the calls that started between `start` and `end`."""
    pairs = [pair for calls in journal.values() for pair in pairwise(calls) if start <= pair[1].started <= end]
    delays = [call.started - max(previous.ended, call.submitted) for previous, call in pairs]
    return tuple(np.percentile(delays, (50, 95)).tolist()) if delays else (0.0, 0.0)


def growth(results: list[ScaleResult]) -> float | None:
    """The exponent e of driver CPU ~ rollouts ** e over the sizes, by least squares. 1 is linear; None: fewer than two sizes."""
    if len({result.scale.rollouts for result in results}) < 2:
        return None
    return float(np.polyfit(np.log([r.scale.rollouts for r in results]), np.log([r.driver_cpu for r in results]), 1)[0])


def tables(results: list[ScaleResult]) -> list[Table]:
    names = [(f"{r.scale.workers:,}", r.scale.case, str(r.scale.max_staleness)) for r in results]
    times = [
        (
            *name,
            f"{max(r.alone.values()):.2f}",
            f"{r.iteration:.2f}",
            f"{r.efficiency:.2f}",
            *(f"{100 * r.idle[role]:.0f} %" for role in ROLES),
        )
        for name, r in zip(names, results, strict=True)
    ]
    costs = [
        (
            *name,
            f"{r.per_rollout(r.driver_own):.2f}",
            f"{r.per_rollout(r.driver_cpu):.2f}",
            f"{r.per_rollout(r.driver_alone):.2f}",
            *("{:.0f}/{:.0f}".format(*(1000 * seconds for seconds in r.delay[role])) for role in ROLES),
        )
        for name, r in zip(names, results, strict=True)
    ]
    sizes = {r.scale.workers: (f"{r.scale.workers:,}", f"{r.stored / 2**20:,.0f}", f"{r.real / 2**20:,.0f}") for r in results}
    setting_columns, per_worker = ("workers", "slowest", "k"), results[0].scale.rollouts_per_worker
    return [
        Table(
            f"Iterations at max_staleness k, in seconds; idle workers; {per_worker} rollouts each",
            (*setting_columns, "alone", "loop", "eff.", *ROLES),
            times,
        ),
        Table("Driver, in ms a rollout; delay of calls, in ms, median/95 %", (*setting_columns, "own", "CPU", "wait", *ROLES), costs),
        Table("Object store, in MiB an iteration", ("workers", "stored here", "with real shapes"), list(sizes.values())),
    ]


def verdict(results: list[ScaleResult]) -> str:
    """One line: how driver CPU grows, its largest value per rollout, and the lowest efficiency."""
    compared = _comparable_results(results)
    exponent = growth(compared)
    growth_text = "" if exponent is None else f"driver CPU grows as rollouts^{exponent:.2f}; "
    worst = max(r.per_rollout(r.driver_cpu) for r in compared)
    return f"{growth_text}at most {worst:.2f} ms a rollout; efficiency with overlap at least {min(r.efficiency for r in compared):.2f}"


def _comparable_results(results: list[ScaleResult]) -> list[ScaleResult]:
    """One result for each size: with overlap, sampling as the slowest role, and the `max_staleness` of the first such result."""
    overlapped = [r for r in results if r.scale.case == "sampling" and r.scale.max_staleness > 0]
    return [r for r in overlapped if r.scale.max_staleness == overlapped[0].scale.max_staleness]


def save(directory: Path, results: list[ScaleResult]) -> None:
    """Write scale.json and scale.md."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [asdict(r) | {"efficiency": r.efficiency, "sleeps": asdict(r.scale.sleep_times)} for r in results]
    report = {"verdict": verdict(results), "growth": growth(_comparable_results(results)), "found": rows}
    write_json(directory / "scale.json", report)
    parts = ["# Scale, by simulation", "", verdict(results), "", *(table.markdown() for table in tables(results))]
    (directory / "scale.md").write_text("\n".join(parts))


def progress_line(result: ScaleResult) -> str:
    """One result as a line, printed while the benchmark runs."""
    setting = result.scale
    size = f"{setting.workers:,} x {setting.rollouts_per_worker}, slowest {setting.case}, staleness {setting.max_staleness}"
    cost = f"{result.per_rollout(result.driver_cpu):.2f} ms a rollout"
    return f"{size}: {result.iteration:.2f} s, efficiency {result.efficiency:.2f}, {cost}"
