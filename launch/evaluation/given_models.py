"""Models on the command line of `minirl evaluate`: names in the report, and checks that each is measurable."""

import re
from pathlib import Path

from actors.engine.engine import check_engine_class
from launch.directory import path_argument
from launch.prepare import PreparedRun, check_attention, check_positions
from minirl.data.tokenizer import read_tokenizer
from minirl.data.vocab import shared_vocabulary
from minirl.errors import InputError
from minirl.evaluation.plots import TEACHER
from minirl.model.loading import check_supported, resolve_model
from minirl.model.weight_accounting import check_weights


def given_models(arguments: list[str], prepared: PreparedRun) -> dict[str, str]:
    """Name -> directory of each argument `DIR` or `NAME=DIR`. Raises InputError for a model that this run's teacher cannot score.

    An argument without a name gets the end of its path, with as many parts as distinguish it from the others: distill-best, sft-best.
    """
    directories: dict[str, str] = {}
    parsed = [_parse(argument) for argument in arguments]
    path_ends = _distinguishing_ends([Path(directory) for name, directory in parsed if name is None])
    for name, directory in parsed:
        name = name or path_ends[Path(directory)]
        if name == TEACHER or name in directories:
            raise InputError(f"--model {directory}: the name {name} is taken; give it another one, --model NAME={directory}")
        directories[name] = resolve_model(directory, f"--model {name}")
    for name, directory in directories.items():
        _check_comparable(f"--model {name}", directory, prepared)
    return directories


def trained_teachers(prepared: PreparedRun) -> tuple[str, ...]:
    """The teachers after training: a run with the stage `sft_teacher` uses its result. Raises InputError where that is missing."""
    if not prepared.config.stages.sft_teacher:
        return prepared.teachers
    tuned = prepared.directory / "sft_teacher" / "best"
    if not (tuned / "config.json").is_file():
        raise InputError(
            f"the config fine-tunes its teacher first, and {tuned} is not there; run that stage, or set stages.sft_teacher: null to "
            "evaluate against the teacher without fine-tuning"
        )
    check_weights(str(tuned), "stages.sft_teacher")
    return (str(tuned),)


def _parse(argument: str) -> tuple[str | None, str]:
    named = re.fullmatch(r"([\w.-]+)=(.+)", argument)
    name, directory = (named[1], named[2]) if named else (None, argument)
    return name, str(path_argument("--model", directory))


def _distinguishing_ends(paths: list[Path]) -> dict[Path, str]:
    """The shortest ends of the paths, of at least two parts, that differ from one another."""
    ends: dict[Path, str] = {}
    for length in range(2, 2 + max((len(path.parts) for path in paths), default=0)):
        ends = {path: re.sub(r"[^\w.-]", "_", "-".join([part for part in path.parts if part != "/"][-length:])) for path in paths}
        if len(set(ends.values())) == len(ends):
            break
    return ends


def _check_comparable(key: str, directory: str, prepared: PreparedRun) -> None:
    network = check_supported(directory, key, learns=False)
    check_engine_class(network, key)
    check_positions(prepared.config, key, network)
    check_attention(prepared.config, key, network)
    check_weights(directory, key)
    tokenizer = read_tokenizer(directory, key)
    try:
        size = shared_vocabulary(tokenizer, prepared.tokenizer, network.vocab_size, prepared.vocabulary)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    if size < prepared.vocabulary:
        raise InputError(
            f"{key}: the model has {size} token ids, and this run's student and teacher share {prepared.vocabulary}; "
            "evaluate it with a config whose student.model has the same vocabulary"
        )
