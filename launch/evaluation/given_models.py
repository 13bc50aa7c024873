"""The models that `minirl evaluate` is given on the command line: their names in the report, and whether they can be judged at all."""

import re
from pathlib import Path

from launch.prepare import PreparedRun, check_positions, read_tokenizer
from minirl.data.vocab import shared_vocabulary
from minirl.errors import InputError
from minirl.evaluation.plots import TEACHER
from minirl.model.loading import check_supported, resolve_model


def given_models(given: list[str], prepared: PreparedRun) -> dict[str, str]:
    """Name -> directory of each `DIR` or `NAME=DIR`. Raises InputError for what cannot be compared with this run's teacher.

    A directory without a name gets the end of its path, as much of it as tells it from the others: distill-best, sft-best.
    """
    named: dict[str, str] = {}
    parsed = [_parse(one) for one in given]
    ends = _ends([Path(directory) for name, directory in parsed if name is None])
    for name, directory in parsed:
        name = name or ends[Path(directory)]
        if name == TEACHER or name in named:
            raise InputError(f"--model {directory}: the name {name} is taken; give it another one, --model NAME={directory}")
        named[name] = resolve_model(directory, f"--model {name}")
    for name, directory in named.items():
        _check(f"--model {name}", directory, prepared)
    return named


def trained_teachers(prepared: PreparedRun) -> tuple[str, ...]:
    """As the stages left them: a run that fine-tunes its teacher first judges by that one."""
    if not prepared.config.stages.sft_teacher:
        return prepared.teachers
    tuned = prepared.directory / "sft_teacher" / "best"
    if not (tuned / "config.json").is_file():
        raise InputError(
            f"the config fine-tunes its teacher first, and {tuned} is not there; run that stage, or set stages.sft_teacher: null to judge "
            "by the teacher as it is"
        )
    return (str(tuned),)


def _parse(given: str) -> tuple[str | None, str]:
    named = re.fullmatch(r"([\w.-]+)=(.+)", given)
    return (named[1], named[2]) if named else (None, given)


def _ends(paths: list[Path]) -> dict[Path, str]:
    """The shortest ends of the paths that tell them apart, two parts at least."""
    ends: dict[Path, str] = {}
    for length in range(2, 2 + max((len(path.parts) for path in paths), default=0)):
        ends = {path: re.sub(r"[^\w.-]", "_", "-".join([part for part in path.parts if part != "/"][-length:])) for path in paths}
        if len(set(ends.values())) == len(ends):
            break
    return ends


def _check(key: str, directory: str, prepared: PreparedRun) -> None:
    network = check_supported(directory, key)
    check_positions(prepared.config, key, network)
    tokenizer = read_tokenizer(directory, key)
    try:
        size = shared_vocabulary(tokenizer, prepared.tokenizer, network.vocab_size, prepared.vocabulary)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    if size < prepared.vocabulary:
        raise InputError(
            f"{key}: the model has {size} token ids, and this run's student and teacher share {prepared.vocabulary}; "
            "evaluate it with a config whose student.model is of its kind"
        )
