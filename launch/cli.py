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
from minirl.config.experiment import ExperimentConfig
from minirl.config.reader import read_config
from minirl.errors import InputError, RunError
from minirl.evaluation.llm_judge import LATEST

INTERRUPTED = 130
# The panel says what goes on; the libraries' own bars and banners would be drawn over it. The driver itself uses no accelerator.
QUIET = {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
CONFIG = typer.Argument(help="A YAML file, for example configs/quickstart.yaml.")
OVERRIDES = typer.Argument(help="key.path=value, for example stages.distill.learning_rate=5e-6.")
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def minirl() -> None:
    """MiniLLM: distil a large language model into a small one, on Ray, vLLM and DeepSpeed."""


@app.command()
def run(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
) -> None:
    """Run the stages of a config; started again in the same directory, go on where it stopped."""
    settings = read_config(RunConfig, config, overrides or [])
    os.environ |= QUIET
    from launch.prepare import claim_directory, prepare
    from launch.progress import ProgressPanel, summary_table
    from launch.run.stages import Recipe

    console = Console()
    with claim_directory(settings) as directory, ProgressPanel(console) as panel:
        prepared = prepare(settings)
        for name, counts in prepared.reports().items():
            console.print(f"{name}: " + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items()), highlight=False)
        Recipe(prepared, panel).run()
    if settings.stages.evaluate:
        console.print(summary_table(json.loads((directory / "summary.json").read_text()), f"{settings.directory}/summary.json"))


@app.command()
def evaluate(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model directory or hub name, or NAME=DIR; once for each model to be judged.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the results go; by default `evaluate` in the config's directory.")] = None,
) -> None:
    """Judge models, and the teacher, with a config's data, sets and decoding; nothing is trained. Goes on where it stopped."""
    settings = read_config(RunConfig, config, overrides or []).with_evaluation()
    if not model:
        raise InputError("evaluate needs a model: give --model DIR, for example --model runs/quickstart/distill/last")
    os.environ |= QUIET
    from launch.evaluation.evaluate import evaluate_models
    from launch.prepare import claim_directory, prepare
    from launch.progress import ProgressPanel, summary_table

    console = Console()
    with claim_directory(settings) as directory, ProgressPanel(console) as panel:
        out = (out or directory / "evaluate").resolve()
        rows = evaluate_models(prepare(settings), model, out, panel)
    console.print(summary_table(rows, f"{out}/evaluation.md"))


@app.command()
def experiment(
    config: Annotated[Path, typer.Argument(help="A YAML file of an experiment, for example configs/experiment.yaml.")],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only this row; once for each. Without it, all.")] = None,
) -> None:
    """Compare methods: a run for each row and seed, all students judged together. Goes on where it stopped."""
    settings = read_config(ExperimentConfig, config, overrides or [])
    os.environ |= QUIET
    from launch.experiment.runner import Experiment
    from launch.progress import ProgressPanel, shown

    console = Console()
    with ProgressPanel(console) as panel:
        found = Experiment(settings, panel).run(row or [])
    for table in found:
        console.print(shown(table))
    console.print(
        f"in {settings.directory}/experiment.md" if found else f"the row {settings.baseline} is missing, so nothing is compared yet"
    )


@app.command()
def bench(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations of the loop that count; one more warms it up.")] = 5,
) -> None:
    """Measure a config's distillation on this machine or cluster: each role alone, the loop, and how near both are to their limits."""
    settings = read_config(RunConfig, config, overrides or [])
    if settings.stages.distill is None:
        raise InputError("bench measures the stage distill, and this config has none; give stages.distill")
    if settings.teacher.ensemble is not None:
        raise InputError("bench measures one teacher, and this config has an ensemble; give teacher.model")
    os.environ |= QUIET
    from launch.bench import Bench
    from launch.prepare import claim_directory, prepare
    from launch.progress import ProgressPanel, shown
    from minirl.bench.efficiency import advice
    from minirl.bench.report import save, tables

    console = Console()
    with claim_directory(settings) as directory, ProgressPanel(console) as panel:
        measurements, about = Bench(prepare(settings), iterations, panel).run()
        about = {"config": " ".join([str(config), *(overrides or [])])} | about
        files = save(directory / "bench", measurements, about)
    for table in tables(measurements):
        console.print(shown(table))
    console.print(advice(measurements), style="bold", highlight=False)
    console.print("in " + ", ".join(map(str, files)), soft_wrap=True, highlight=False)


@app.command()
def judge(
    run: Annotated[Path, typer.Argument(help="The directory of a run that was evaluated.")],
    endpoint: Annotated[str, typer.Option(help="An OpenAI-compatible server, for example http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option(help="The judge, as the server names it.")],
    a: Annotated[str, typer.Option(help="The judged row of the evaluation.")] = "distill",
    b: Annotated[str, typer.Option(help="The row it is compared with, or the reference responses.")] = "reference",
    on_set: Annotated[str, typer.Option("--set", help="Which set of the evaluation.")] = "test",
    prompts: Annotated[int | None, typer.Option(min=1, help="The first so many prompts; all, if left out.")] = None,
    version: Annotated[str, typer.Option(help="Of the judge's prompt.")] = LATEST,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a reply; the scores come first.")] = 256,
    deadline: Annotated[float, typer.Option(min=0.001, help="Seconds for one try of a request.")] = 120.0,
    retries: Annotated[int, typer.Option(min=0, help="Further tries of a request.")] = 4,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 8,
) -> None:
    """Let a model compare a run's responses with another's or the references; the key of its server is in MINIRL_JUDGE_API_KEY."""
    from launch.judge import Judge, judge_run
    from launch.progress import shown

    console = Console()
    asks = Judge(endpoint, model, version, temperature, max_tokens, deadline, retries, concurrency)
    with console.status("asking the judge") as status:
        table, files = judge_run(
            run, a, b, on_set, asks, prompts, lambda done, total: status.update(f"asking the judge: {done} of {total}")
        )
    console.print(shown(table))
    console.print("in " + ", ".join(map(str, files)), soft_wrap=True, highlight=False)


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
