"""The `minirl` command: its verbs, their options and exit codes.

Heavy imports happen inside the verbs, so that a mistyped key is reported at once.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from actors.cluster_access import use_token
from actors.environment import DRIVER_ENVIRONMENT
from launch.cluster import commands as cluster_commands
from launch.config import RunConfig
from launch.interruption import INTERRUPTED, INTERRUPTION
from minirl.collector import lasting_imports
from minirl.config.experiment import ExperimentConfig
from minirl.config.reader import read_config
from minirl.errors import InputError, RunError
from minirl.evaluation.llm_judge import LATEST

CONFIG = typer.Argument(help="YAML file of a run, for example configs/quickstart.yaml.")
OVERRIDES = typer.Argument(help="Config values to replace, as key.path=value, for example stages.distill.learning_rate=5e-6.")
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def minirl() -> None:
    """Distil a large language model into a small one with MiniLLM, on Ray, vLLM and DeepSpeed."""


@app.command()
def run(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
) -> None:
    """Run the stages of a config, or resume them where the last run in the same directory stopped."""
    settings = read_config(RunConfig, config, overrides or [])
    os.environ |= DRIVER_ENVIRONMENT
    with lasting_imports():
        from launch.directory import claim_directory
        from launch.prepare import prepare
        from launch.progress import make_console, make_progress, summary_table
        from launch.run.stages import Recipe

    console = make_console()
    with claim_directory(settings) as directory, make_progress(console) as panel:
        prepared = prepare(settings)
        for name, counts in prepared.reports().items():
            console.print(f"{name}: " + ", ".join(f"{count} {label.replace('_', ' ')}" for label, count in counts.items()), highlight=False)
        _say(console, prepared.dtype_line)
        Recipe(prepared, panel).run()
    if settings.stages.evaluate:
        console.print(summary_table(json.loads((directory / "summary.json").read_text()), f"{settings.directory}/summary.json"))


@app.command()
def evaluate(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Model directory or hub name, or NAME=DIR; repeat the option for each model to measure.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output directory; by default `evaluate` in the config's directory.")] = None,
) -> None:
    """Measure models and the teacher with a config's data, sets and decoding, without training; a repeated command resumes."""
    settings = read_config(RunConfig, config, overrides or []).with_evaluation()
    if not model:
        raise InputError("evaluate needs a model: give --model DIR, for example --model runs/quickstart/distill/last")
    os.environ |= DRIVER_ENVIRONMENT
    with lasting_imports():
        from launch.directory import claim_directory, file_errors_as_sentences, path_argument
        from launch.evaluation.evaluate import evaluate_models
        from launch.prepare import prepare
        from launch.progress import ProgressPanel, make_console, summary_table

    console = make_console()
    with claim_directory(settings) as directory, ProgressPanel(console) as panel:
        out = path_argument("--out", str(out or directory / "evaluate")).resolve()
        with file_errors_as_sentences(str(out)):
            out.mkdir(parents=True, exist_ok=True)
        prepared = prepare(settings)
        _say(console, prepared.dtype_line)
        rows = evaluate_models(prepared, model, out, panel)
    console.print(summary_table(rows, f"{out}/evaluation.md"))


@app.command()
def experiment(
    config: Annotated[Path, typer.Argument(help="YAML file of an experiment, for example configs/experiment.yaml.")],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    row: Annotated[list[str] | None, typer.Option(help="Row to run, by default all; repeat the option for each row.")] = None,
) -> None:
    """Compare methods: train each row with each of its seeds, then measure all students together; a repeated command resumes."""
    settings = read_config(ExperimentConfig, config, overrides or [])
    os.environ |= DRIVER_ENVIRONMENT
    with lasting_imports():
        from launch.directory import file_errors_as_sentences
        from launch.experiment.runner import Experiment
        from launch.progress import ProgressPanel, make_console, rich_table

    console = make_console()
    with file_errors_as_sentences(settings.directory):
        Path(settings.directory).mkdir(parents=True, exist_ok=True)
    with ProgressPanel(console) as panel:
        comparison = Experiment(settings, panel)
        _say(console, comparison.dtype_line)
        result_tables = comparison.run(row or [])
    for table in result_tables:
        console.print(rich_table(table))
    console.print(
        f"in {settings.directory}/experiment.md"
        if result_tables
        else f"the baseline row {settings.baseline} has no results yet, so nothing is compared"
    )


@app.command()
def bench(
    config: Annotated[Path, CONFIG],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations of the loop to measure, after one to warm up.")] = 5,
) -> None:
    """Measure a config's distillation on this machine or cluster: each role alone, the loop, and how near both are to their limits."""
    settings = read_config(RunConfig, config, overrides or [])
    if settings.stages.distill is None:
        raise InputError("bench measures the stage distill, and this config has none; give stages.distill")
    if settings.teacher.ensemble is not None:
        raise InputError("bench measures one teacher, and this config has an ensemble; give teacher.model")
    os.environ |= DRIVER_ENVIRONMENT
    with lasting_imports():
        from launch.bench import Bench
        from launch.directory import claim_directory
        from launch.prepare import prepare
        from launch.progress import ProgressPanel, make_console, rich_table
        from minirl.bench.bottleneck import bottleneck
        from minirl.bench.report import save, tables

    console = make_console()
    with claim_directory(settings) as directory, ProgressPanel(console) as panel:
        prepared = prepare(settings)
        _say(console, prepared.dtype_line)
        measurements, setup = Bench(prepared, iterations, panel).run()
        setup = {"config": " ".join([str(config), *(overrides or [])])} | setup
        files = save(directory / "bench", measurements, setup)
    for table in tables(measurements):
        console.print(rich_table(table))
    console.print(bottleneck(measurements), style="bold", highlight=False)
    console.print("in " + ", ".join(map(str, files)), soft_wrap=True, highlight=False)


@app.command()
def judge(
    run: Annotated[Path, typer.Argument(help="Directory of a run that was evaluated.")],
    endpoint: Annotated[str, typer.Option(help="OpenAI-compatible server, for example http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option(help="Name of the LLM judge on that server.")],
    a: Annotated[str, typer.Option(help="Row of the evaluation whose responses are judged.")] = "distill",
    b: Annotated[str, typer.Option(help="Row to compare with, or `reference` for the reference responses.")] = "reference",
    on_set: Annotated[str, typer.Option("--set", help="Evaluation set to judge.")] = "test",
    prompts: Annotated[int | None, typer.Option(min=1, help="Judge only the first N prompts; by default all.")] = None,
    version: Annotated[str, typer.Option(help="Version of the judge's prompt.")] = LATEST,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature of the judge; 0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length limit of a reply, which starts with the scores.")] = 256,
    deadline: Annotated[float, typer.Option(min=0.001, help="Seconds for one attempt at a request.")] = 120.0,
    retries: Annotated[int, typer.Option(min=0, help="Further attempts at a failed request.")] = 4,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests that run at the same time.")] = 8,
) -> None:
    """Let an LLM judge compare a run's responses with another row's or the references; MINIRL_JUDGE_API_KEY holds its server's key."""
    from launch.judge import JudgeSettings, judge_run
    from launch.progress import make_console, rich_table

    console = make_console()
    llm_judge = JudgeSettings(endpoint, model, version, temperature, max_tokens, deadline, retries, concurrency)
    with console.status("asking the judge") as status:
        table, files = judge_run(
            run, a, b, on_set, llm_judge, prompts, lambda done, total: status.update(f"asking the judge: {done} of {total}")
        )
    console.print(rich_table(table))
    console.print("in " + ", ".join(map(str, files)), soft_wrap=True, highlight=False)


for command in (cluster_commands.submit, cluster_commands.jobs, cluster_commands.status, cluster_commands.logs, cluster_commands.stop):
    app.command()(command)


def _say(console: Console, line: str | None) -> None:
    if line:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Entry point. A user's mistake is one sentence and exit code 2, an error of the run is one sentence and exit code 1.

    SIGINT and SIGTERM end the command with exit code 130; a training stage writes a checkpoint first.
    """
    use_token()
    INTERRUPTION.install()
    errors = Console(stderr=True, soft_wrap=True)
    warnings.showwarning = lambda message, *where: errors.print(f"warning: {message}", markup=False, highlight=False)  # one line each
    try:
        app()
    except InputError as error:
        errors.print(f"error: {error}", markup=False, highlight=False)
        sys.exit(2)
    except RunError as error:
        errors.print(f"stopped: {error}", markup=False, highlight=False)
        sys.exit(1)
    except OSError as error:  # while stages run
        from launch.directory import DISK_ERRORS, os_error_sentence

        if error.errno not in DISK_ERRORS:
            raise
        errors.print(f"stopped: {os_error_sentence(error)}", markup=False, highlight=False)
        sys.exit(1)
    except SystemExit as end:  # typer turns a KeyboardInterrupt into this
        if end.code == INTERRUPTED:
            errors.print("interrupted; start the same command again to resume", highlight=False)
        raise
