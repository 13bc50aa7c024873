"""Rows of data sets on the Hugging Face hub: the parts of a source's name (revision, config, split), and its reading."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from minirl.data.values import printable, without_nulls
from minirl.errors import InputError

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
        raise InputError(
            f"cannot load the data set {source} from the Hugging Face hub ({_reason(error)}); it was taken for a hub data set, because no "
            f"such file exists and it has the form {FORM}; {_advice(error)}"
        ) from None


def _reason(error: Exception) -> str:
    """The whole message in one line: the names of the configurations and splits that exist stand at its end."""
    return printable(" ".join(str(error).split()).rstrip(".") or type(error).__name__, 300)


def _advice(error: Exception) -> str:
    text = str(error).lower()
    if "gated" in text or "restricted" in text:
        return "ask for access on its page and log in with hf auth login"
    if "no space left" in text:
        return "make space on the disk of the hub's cache (HF_HOME)"
    if "certificate" in text:
        return "name the certificate of your proxy in SSL_CERT_FILE"
    return "check its name, configuration and split and the network, or give a file"
