"""Rows of data sets on the Hugging Face hub: the parts of a source's name (revision, config, split), and its reading."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from minirl.data.values import printable, without_nulls
from minirl.errors import InputError
from minirl.hub import hub_problem

FORM = "owner/name, owner/name:split, owner/name:config/split or owner/name@revision:config/split"
_NAME = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:((?P<config>[^:/\[\]]+)/)?(?P<split>[\w.-]+(\[[\w:%-]*\])?(\+[\w.\[\]:%-]+)*))?"
)


class HubSource(NamedTuple):
    """A hub data set. config: None for the only one or the default one. revision: a branch, tag or commit; None: main."""

    name: str
    config: str | None
    split: str
    revision: str | None


def parse_hub_source(source: str) -> HubSource | None:
    """The parts of a name such as `openai/gsm8k@main:socratic/train[:10%]`; None for a text of another form."""
    match = _NAME.fullmatch(source)
    return match and HubSource(match["name"], match["config"], match["split"] or "train", match["revision"])


def read_hub(source: str, streaming: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a hub data set. `streaming` reads it without downloading all of it. Raises InputError if it cannot be loaded."""
    import datasets

    parts = parse_hub_source(source)
    try:  # an unknown name, a missing split, a private data set and a missing network raise exceptions of many types
        rows = datasets.load_dataset(parts.name, parts.config, split=parts.split, revision=parts.revision, streaming=streaming)
        for number, row in enumerate(rows, start=1):
            yield f"{source} row {number}", {name: without_nulls(value) for name, value in row.items()}
    except Exception as error:
        problem = printable(hub_problem(_cause(error, parts.name), "data set"), 600)
        raise InputError(
            f"{source} is no file, and the Hugging Face hub does not provide it: {problem} (a data set on the hub has the form {FORM})"
        ) from None


def _cause(error: Exception, name: str) -> Exception:
    """The hub client's own error. `datasets` drops it from some of its errors, so the client is asked again."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import HfApi

    if isinstance(error, DatasetNotFoundError | ConnectionError):
        try:
            HfApi().auth_check(name, repo_type="dataset")
        except Exception as cause:
            return cause
    return error
