"""What a person sees while a run goes: one panel that is always true, or plain lines where there is no terminal."""

import time
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from minirl.tables import Table as Measured
from minirl.training.log import Record

VERBS = ("sample", "score", "credit", "update", "publish")
SHOWN = {
    "loss": ("loss/total", "loss/supervised"),
    "reverse KL": ("rollout/reverse_kl",),
    "validation": ("eval/rouge_l", "eval/validation_loss"),
    "response tokens": ("rollout/mean_response_tokens",),
    "rollout tok/s": ("rollout/tokens_per_second",),
    "teacher tok/s": ("teacher/tokens_per_second",),
    "learner tok/s": ("learner/tokens_per_second",),
}


class ProgressPanel:
    """Use as a context manager; hand `record` and `doing` to the recipe."""

    def __init__(self, console: Console):
        self.console = console
        self.stage, self.doing_now, self.since = "", "preparing", time.monotonic()
        self.latest: dict[str, float] = {}
        self.unit = ""
        self.number, self.total, self.first, self.began = 0, 0, 0, time.monotonic()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> "ProgressPanel":
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def stage_started(self, stage: str, total: int, done: int, unit: str) -> None:
        """A stage begins or goes on: `done` of its `total` units (iterations, updates, ...) are behind it."""
        self.unit = unit
        self.stage, self.number, self.total, self.first, self.began, self.latest = stage, done, total, done, time.monotonic(), {}

    def progressed(self, done: int) -> None:
        self.number = done

    def doing(self, stage: str, what: str) -> None:
        self.stage, self.doing_now, self.since = stage, what, time.monotonic()
        if not self._live and what not in VERBS:
            self.console.print(f"{stage}: {what}", highlight=False)

    def record(self, record: Record) -> None:
        self.stage = str(record["stage"])
        self.latest |= {key: value for key, value in record.items() if isinstance(value, int | float)}
        number = record.get("iteration", record.get("update"))
        if "time/update" in record:
            self.number = int(number) + 1
        if not self._live:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in self._values(record))
            self.console.print(f"{self.stage} {number}: {shown}", highlight=False)

    def _values(self, record: Record) -> list[tuple[str, float]]:
        return [(name, float(record[key])) for name, keys in SHOWN.items() for key in keys if key in record]

    def _left(self) -> str:
        done = self.number - self.first
        if not done:
            return "unknown yet"
        seconds = (time.monotonic() - self.began) / done * (self.total - self.number)
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"

    def _render(self) -> Group:
        head = Text.assemble(
            (self.stage or "prepare", "bold"), f"  {self.unit} {self.number}/{self.total}  time left {self._left()}" if self.total else ""
        )
        now = Spinner("dots", f"{self.doing_now} ({time.monotonic() - self.since:.0f} s)")
        table = Table.grid(padding=(0, 3))
        values = self._values(self.latest)
        if values:
            table.add_row(*[Text(name, style="dim") for name, _ in values])
            table.add_row(*[f"{value:.4g}" for _, value in values])
        verbs = [(verb, self.latest[f"time/{verb}"]) for verb in VERBS if f"time/{verb}" in self.latest]
        times = Text("  ".join(f"{verb} {seconds:.1f} s" for verb, seconds in verbs), style="dim")
        return Group(head, now, table, times)


def summary_table(rows: dict[str, dict], more: str) -> Table:
    """The closing table; fits 80 columns. more: where the rest stands."""
    table = Table(title=f"Held-out prompts; {more}", padding=(0, 0), caption="KL in nats per token")
    columns = {
        "Rouge-L": "rouge_l", "s.e.": "rouge_l_standard_error", "rev. KL": "reverse_kl", "per resp.": "reverse_kl_per_response",
        "fwd. KL": "forward_kl_gold", "tokens": "mean_response_tokens", "cut": "truncated", "dist-4": "distinct_4",
    }  # fmt: skip
    table.add_column("model")
    for name in columns:
        table.add_column(name, justify="right")
    for model, row in rows.items():
        table.add_row(model, *["" if row[key] is None else f"{row[key]:.3g}" for key in columns.values()])
    return table


def shown(table: Measured) -> Table:
    """For the terminal; fits 80 columns."""
    text, *numbers = table.columns
    rich = Table(text, title=table.title, title_justify="left", box=SIMPLE_HEAD, min_width=len(table.title))
    for name in numbers:
        rich.add_column(name, justify="right")
    for row in table.rows:
        rich.add_row(*row)
    return rich
