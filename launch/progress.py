"""Terminal output of the commands: a live progress panel (plain lines without a terminal) and result tables."""

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from launch.progress_lines import ProgressLines
from minirl.tables import Table as ResultTable
from minirl.training.log import Record

VERBS = ("sample", "score", "credit", "update", "publish")
PROGRESS_LINES = "MINIRL_PROGRESS_LINES"  # environment variable of a job: report progress as lines that `minirl logs` reads
WIDTH_WITHOUT_TERMINAL = 1000  # tables take the width that their text needs
PANEL_VALUES = {  # label -> keys of a record that it shows
    "loss": ("loss/total", "loss/supervised"),
    "reverse KL": ("rollout/reverse_kl",),
    "forward KL": ("eval/forward_kl_gold",),
    "validation": ("eval/rouge_l", "eval/validation_loss"),
    "validation KL": ("eval/reverse_kl",),
    "response tokens": ("rollout/mean_response_tokens",),
    "rollout tok/s": ("rollout/tokens_per_second",),
    "teacher tok/s": ("teacher/tokens_per_second",),
    "learner tok/s": ("learner/tokens_per_second",),
}


def make_progress(console: Console) -> "ProgressPanel | ProgressLines":
    """The progress of a command: a panel, or lines for `minirl logs` in a job."""
    return ProgressLines(sys.stdout) if os.environ.get(PROGRESS_LINES) else ProgressPanel(console)


def make_console() -> Console:
    """The console of a command. Without a terminal nothing is wrapped, so that a line of a log stays one line."""
    console = Console()
    return console if console.is_terminal else Console(soft_wrap=True, width=WIDTH_WITHOUT_TERMINAL)


class ProgressPanel:
    """An `Observer` that draws what it receives. Use it as a context manager.

    clock: seconds, of the reports it receives. live: draw a panel if the console is a terminal; False prints plain lines.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic, live: bool = True):
        self.console, self._clock = console, clock
        self.stage, self.activity, self.activity_began = "", "preparing", clock()
        self.latest_values: dict[str, float] = {}
        self.unit = ""
        self.done, self.total, self.done_at_start, self.stage_began = 0, 0, 0, clock()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4) if live and console.is_terminal else None

    def __enter__(self) -> "ProgressPanel":
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def stage_started(self, stage: str, total: int, done: int, unit: str) -> None:
        """A stage starts or resumes: `done` of its `total` units (iterations, updates, ...) are finished."""
        self.stage, self.total, self.unit, self.done, self.done_at_start = stage, total, unit, done, done
        self.stage_began, self.latest_values = self._clock(), {}

    def progressed(self, done: int) -> None:
        self.done = done

    def doing(self, stage: str, activity: str) -> None:
        self.stage, self.activity, self.activity_began = stage, activity, self._clock()
        if not self._live and activity not in VERBS:
            self.console.print(f"{stage}: {activity}", highlight=False)

    def warn(self, stage: str, message: str) -> None:
        self.console.print(f"warning: {stage}: {message}", style="bold yellow", highlight=False, markup=False, soft_wrap=True)

    def record(self, record: Record) -> None:
        self.stage = str(record["stage"])
        self.latest_values |= {key: value for key, value in record.items() if isinstance(value, int | float)}
        number = record.get("iteration", record.get("update"))
        if "time/update" in record:
            self.done = int(number) + 1
        if not self._live:
            values = "  ".join(f"{name} {value:.4g}" for name, value in self._panel_values(record))
            self.console.print(f"{self.stage} {number}: {values}", highlight=False)

    def _panel_values(self, record: Record) -> list[tuple[str, float]]:
        return [(name, float(record[key])) for name, keys in PANEL_VALUES.items() for key in keys if key in record]

    def _time_left(self) -> str:
        done = self.done - self.done_at_start
        if not done:
            return "unknown yet"
        seconds = (self._clock() - self.stage_began) / done * (self.total - self.done)
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"

    def _render(self) -> Group:
        position = f"  {self.unit} {self.done}/{self.total}  time left {self._time_left()}" if self.total else ""
        head = Text.assemble((self.stage or "prepare", "bold"), position)
        now = Spinner("dots", f"{self.activity} ({self._clock() - self.activity_began:.0f} s)")
        table = Table.grid(padding=(0, 3))
        values = self._panel_values(self.latest_values)
        if values:
            table.add_row(*[Text(name, style="dim") for name, _ in values])
            table.add_row(*[f"{value:.4g}" for _, value in values])
        verb_seconds = [(verb, self.latest_values[f"time/{verb}"]) for verb in VERBS if f"time/{verb}" in self.latest_values]
        times = Text("  ".join(f"{verb} {seconds:.1f} s" for verb, seconds in verb_seconds), style="dim")
        return Group(head, now, table, times)


def summary_table(rows: dict[str, dict], full_results: str) -> Table:
    """The closing table of a run or evaluation; fits 80 columns. full_results: the file with all figures, for the title."""
    table = Table(
        title=f"Held-out prompts; {full_results}",
        padding=(0, 0),
        caption="KL in nats per token; alike: Rouge-L of greedy answers to the teacher's",
    )
    columns = {
        "Rouge-L": "rouge_l", "s.e.": "rouge_l_standard_error", "rev. KL": "reverse_kl", "KL/resp.": "reverse_kl_per_response",
        "fwd. KL": "forward_kl_gold", "alike": "teacher_rouge_l", "tokens": "mean_response_tokens", "cut": "truncated",
        "dist-4": "distinct_4",
    }  # fmt: skip
    table.add_column("model", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    for model, row in rows.items():
        table.add_row(model, *["" if row.get(key) is None else f"{row[key]:.3g}" for key in columns.values()])
    return table


def rich_table(table: ResultTable) -> Table:
    """A table for the terminal; fits 80 columns. The first column holds text, the others numbers."""
    text_column, *number_columns = table.columns
    rich = Table(text_column, title=table.title, title_justify="left", box=SIMPLE_HEAD, min_width=len(table.title))
    for name in number_columns:
        rich.add_column(name, justify="right")
    for row in table.rows:
        rich.add_row(*row)
    return rich
