"""The `minirl` command. Heavy imports happen inside the verbs, so that a mistyped key is reported at once."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from launch.config import RunConfig
from minirl.config import read_config
from minirl.errors import InputError, RunError

INTERRUPTED = 130
# The panel says what goes on; the libraries' own bars and banners would be drawn over it. The driver itself uses no accelerator.
QUIET = {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def minirl() -> None:
    """MiniLLM: distil a large language model into a small one, on Ray, vLLM and DeepSpeed."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A YAML file, for example configs/quickstart.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value, for example stages.distill.learning_rate=5e-6.")] = None,
) -> None:
    """Run the stages of a config; started again in the same directory, go on where it stopped."""
    settings = read_config(RunConfig, config, overrides or [])
    os.environ |= QUIET
    from launch.prepare import claimed, prepare
    from launch.progress import ProgressPanel, summary_table
    from launch.recipe import Recipe

    console = Console()
    with claimed(settings) as directory, ProgressPanel(settings, console) as panel:
        prepared = prepare(settings)
        for name, counts in prepared.reports().items():
            console.print(f"{name}: " + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items()), highlight=False)
        Recipe(prepared, panel).run()
    if settings.stages.evaluate:
        console.print(summary_table(json.loads((directory / "summary.json").read_text()), settings.directory))


def main() -> None:
    """Entry point: an error of the user's is one sentence and exit code 2, a run's own is exit code 1."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell's background job would ignore the first
        signal.signal(number, _interrupt)
    errors = Console(stderr=True, soft_wrap=True)
    try:
        app()
    except InputError as error:
        errors.print(f"error: {error}", markup=False, highlight=False)
        sys.exit(2)
    except RunError as error:
        errors.print(f"stopped: {error}", markup=False, highlight=False)
        sys.exit(1)
    except SystemExit as end:  # typer turns an interruption into it
        if end.code == INTERRUPTED:
            errors.print("interrupted; start the same command again to go on", highlight=False)
        raise


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
