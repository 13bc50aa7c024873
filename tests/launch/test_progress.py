"""What a command prints where no terminal is: whole lines, however long, through a real pipe."""

import io
import os
import subprocess
import sys

from rich.console import Console

from launch.progress import summary_table
from tests.deadlines import deadline

PRINT = """
from launch.progress import ProgressPanel, make_console, rich_table, summary_table
from minirl.tables import Table
console = make_console()
with ProgressPanel(console) as panel:
    panel.doing("distill", "starting " + "x" * 200)
    panel.record({"stage": "distill", "iteration": 3, "loss/total": 1.5, "rollout/reverse_kl": 0.25, "rollout/mean_response_tokens": 40.0,
                  "rollout/tokens_per_second": 1e3, "teacher/tokens_per_second": 1e3, "learner/tokens_per_second": 1e3})
    panel.warn("distill", "Rouge-L was 0 at [all] 3 validations " + "y" * 100)
console.print("data: " + ", ".join(f"{n} from /a/long/path/of/a/data/file {n}" for n in range(12)), highlight=False)
console.print(rich_table(Table("in " + "/a/long/directory" * 12, ["row", *"abcdefgh"], [["name " * 12, *["1.2345678"] * 8]])))
"""


def test_a_line_stays_a_line_through_a_pipe():
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE")}
    result = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True, env=environment, timeout=deadline(5), check=True)
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0] == "distill: starting " + "x" * 200
    assert lines[1].startswith("distill 3: loss 1.5") and lines[1].endswith("learner tok/s 1000")
    assert lines[2] == "warning: distill: Rouge-L was 0 at [all] 3 validations " + "y" * 100
    assert lines[3].startswith("data: 0 from") and lines[3].endswith("/file 11")
    assert any(line.strip() == "in " + "/a/long/directory" * 12 for line in lines)
    row = next(line for line in lines if "name name" in line)
    assert row.count("name") == 12 and row.count("1.2345678") == 8


def test_the_closing_table_fits_80_columns():
    row = {
        "rouge_l": 12.34, "rouge_l_standard_error": 0.456, "reverse_kl": 1.234, "reverse_kl_per_response": 12.34, "forward_kl_gold": 0.0123,
        "teacher_rouge_l": 45.67, "mean_response_tokens": 123.4, "truncated": 0.0123, "distinct_4": 0.987,
    }  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table({"student_init": row, "a_model_with_a_long_name": row | {"teacher_rouge_l": None}}, "summary.json"))
    text = console.export_text()
    assert "student_init" in text and "45.7" in text and "\u2026" not in text
