"""Writes docs/configuration.md, the reference of all config keys, from the config models' docstrings and field comments.

A field's meaning is the comment behind it, or the comment lines right above it. A field without one is an error.
"""

import ast
import inspect
import io
import sys
import tokenize
from collections.abc import Iterable
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.scripts.generated import ROOT, write_or_check
from launch.config import RunConfig
from minirl.config.experiment import ExperimentConfig
from minirl.config.objective import PRESETS

NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any value"}
TITLES = {RunConfig: "Top level of a run", ExperimentConfig: "Top level of an experiment"}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
HEAD = """# Configuration reference

<!-- `make docs` writes this page from the config models; edit their docstrings and field comments instead. -->

A run is one YAML file, read strictly: an unknown key is an error that suggests the nearest one. Any key can be set on the command line as
`key.path=value`, for example `stages.distill.learning_rate=5e-6`. `minirl run`, `evaluate` and `bench` read a run's config, `minirl
experiment` reads an experiment's.

The file is YAML 1.2, and the key's type decides what a word means: `off` is false for a key that is true or false, and a text elsewhere.
A key that is given twice is an error. In a directory, a model or a source, `~` and `$VAR` are replaced.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, "## A run\n", *_sections(RunConfig, ""), _presets(), "## An experiment\n", *_sections(ExperimentConfig, "")]
    return "\n".join(parts)


def _sections(model: type[BaseModel], prefix: str) -> list[str]:
    """One section for the model and each model below it; a model that several keys share has one section."""
    keys_of: dict[type[BaseModel], list[str]] = {}
    _collect(model, prefix, keys_of)
    return [_section(each, keys) for each, keys in keys_of.items()]


def _collect(model: type[BaseModel], key: str, keys_of: dict[type[BaseModel], list[str]]) -> None:
    keys_of.setdefault(model, []).append(key)
    for name, field in model.model_fields.items():
        for nested in _models_in(field.annotation):
            marker = "[]" if get_origin(_without_none(field.annotation)) is list else ""
            marker = ".NAME" if get_origin(_without_none(field.annotation)) is dict else marker
            _collect(nested, f"{key}.{name}{marker}".removeprefix("."), keys_of)


def _section(model: type[BaseModel], keys: list[str]) -> str:
    title = ", ".join(f"`{key}`" for key in keys) if keys != [""] else TITLES[model]
    rows = [f"| `{name}` | {_type(field)} | {_default(field)} | {_meaning(model, name)} |" for name, field in model.model_fields.items()]
    docstring = inspect.cleandoc(model.__doc__ or "")
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join([f"### {title}\n", *([docstring, ""] if docstring else []), *table, ""])


def _presets() -> str:
    switches = list(dict.fromkeys(switch for preset in PRESETS.values() for switch in preset))
    rows = [f"| `{s}` | " + " | ".join(_value(preset[s]) if s in preset else "" for preset in PRESETS.values()) + " |" for s in switches]
    head = ["| switch | " + " | ".join(f"`{name}`" for name in PRESETS) + " |", "|---" * (1 + len(PRESETS)) + "|"]
    text = "What each `objective.preset` sets; a switch that the config names itself wins. An empty cell is the default above.\n"
    return "\n".join(["### Presets of `objective`\n", text, *head, *rows, ""])


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _without_none(annotation: Any) -> Any:
    rest = [argument for argument in get_args(annotation) if argument is not NoneType]
    return rest[0] if get_origin(annotation) in (Union, UnionType) and len(rest) == 1 else annotation


def _type(field: FieldInfo) -> str:
    return f"{_annotation(field.annotation)} {_bounds(field.metadata)}".strip()


def _bounds(metadata: Iterable[Any]) -> str:
    limits = (f"{sign} {_value(getattr(m, name))}" for m in metadata for name, sign in BOUNDS.items() if getattr(m, name, None) is not None)
    return ", ".join(limits)


def _annotation(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):  # Annotated, as pydantic's PositiveInt
        return f"{_annotation(annotation.__origin__)} {_bounds(annotation.__metadata__)}".strip()
    if origin in (Union, UnionType):
        return " or ".join("null" if argument is NoneType else _annotation(argument) for argument in arguments)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {_annotation(arguments[0])}"
    if origin is dict:
        return f"mapping of names to {_annotation(arguments[1])}"
    return NAMES.get(annotation, "section")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return "see its section" if isinstance(default, BaseModel) else _value(default)


def _value(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return '`""`' if value == "" else f"{value:g}" if isinstance(value, float) else f"`{value}`" if isinstance(value, str) else str(value)


def _meaning(model: type[BaseModel], name: str) -> str:
    for owner in model.__mro__:
        if issubclass(owner, BaseModel) and name in _comments(owner):
            return _comments(owner)[name].replace("|", "\\|")
    raise SystemExit(f"the config field {model.__name__}.{name} has no comment; write one behind it or right above it")


@cache
def _comments(model: type[BaseModel]) -> dict[str, str]:
    """Field -> comment, of the fields that this class itself declares."""
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(model))
    except OSError:  # a model without a source file, as pydantic's own base
        return {}
    lines = source.splitlines()
    comments = {
        t.start[0]: t.string.lstrip("# ") for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT
    }
    fields = [node for node in ast.parse(source).body[0].body if isinstance(node, ast.AnnAssign)]
    meanings = {}
    for field in fields:
        behind = [comments[line] for line in range(field.lineno, field.end_lineno + 1) if line in comments]
        above, line = [], field.lineno - 1
        while line in comments and lines[line - 1].lstrip().startswith("#"):
            above.insert(0, comments[line])
            line -= 1
        if text := " ".join(above + [c for c in behind if not c.startswith(("fmt:", "noqa"))]):
            meanings[field.target.id] = text
    return meanings


def main() -> int:
    return write_or_check(ROOT / "docs" / "configuration.md", reference())


if __name__ == "__main__":
    sys.exit(main())
