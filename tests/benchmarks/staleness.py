"""Benchmark of sampling ahead on a user's config: speed and quality of the same run with `max_staleness` 0, 1 and 2.

    python -m tests.benchmarks.staleness configs/quickstart.yaml --out DIR [key=value ...]

Every run is the real command, in a separate directory, from the same seed. A restart does not repeat finished runs. The config needs the
stages `distill` and `evaluate`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

COLUMNS = ("max_staleness", "seconds an iteration", "reverse KL", "s.e.", "reverse KL before", "mean ratio", "clipped")


def run(config: str, overrides: list[str], staleness: int, out: Path) -> dict[str, float]:
    """Run the config once. Returns its row: median seconds of an iteration; the student's exact reverse KL on held-out prompts."""
    directory = out / f"staleness-{staleness}"
    command = [str(Path(sys.executable).with_name("minirl")), "run", config, *overrides, f"directory={directory}"]
    subprocess.run([*command, f"stages.distill.max_staleness={staleness}", "stages.distill.leaves=last"], check=True)
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steady = [r for r in records if "time/iteration" in r][1 + staleness :]  # the first ones warm the engines up or are not stale yet
    rows = json.loads((directory / "summary.json").read_text())
    before = rows.get("sft", rows["student_init"])
    values = (
        staleness,
        median(r["time/iteration"] for r in steady),
        rows["distill"]["reverse_kl"],
        rows["distill"]["reverse_kl_standard_error"],
        before["reverse_kl"],
        median(r["rollout/importance_ratio"] for r in steady),
        median(r["rollout/clipped"] for r in steady),
    )
    return dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", help="key=value, as for `minirl run`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_intermixed_args()
    rows = [run(arguments.config, arguments.overrides, staleness, arguments.out) for staleness in arguments.staleness]
    table = Table(*COLUMNS, title="Sampling ahead")
    for row in rows:
        table.add_row(*[f"{value:.3g}" for value in row.values()])
    Console().print(table)
    (arguments.out / "staleness.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
