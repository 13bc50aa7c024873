"""Reads a YAML file and command-line overrides into a validated config; the first problem becomes one sentence."""

import difflib
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel

from minirl.config.yaml_text import YamlProblem, read_yaml
from minirl.errors import InputError

M = TypeVar("M", bound=BaseModel)


def read_config(model: type[M], path: str | Path, overrides: list[str]) -> M:
    """Reads a YAML file, applies `key.path=value` overrides, and validates. Raises InputError with one sentence."""
    try:
        values = read_yaml(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read the config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"the config {path} is not UTF-8 text: {error}") from None
    except ValueError as error:  # a path that is none
        raise InputError(f"cannot read the config {str(path)!r}: {error}") from None
    except YamlProblem as error:
        raise InputError(f"the config {path} {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"the config {path} must hold a mapping of keys to values")
    for override in overrides:
        _apply_override(values, override)
    return validate_config(model, values)


def _apply_override(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"the override {override!r} must have the form key.path=value")
    *parents, last = key.split(".")
    for parent, child in pairwise([*parents, last]):
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if isinstance(values, list):
            values = _item_with_key(values, child, parent, override)
        if not isinstance(values, dict):
            raise InputError(f"the override {override!r} goes through {parent}, which is a value and has no keys; override {parent} itself")
    try:
        values[last] = read_yaml(text)
    except YamlProblem as error:
        raise InputError(f"the value of the override {override!r} {error}") from None


def _item_with_key(items: list, key: str, parent: str, override: str) -> dict:
    """The item `{key: ...}` in a list of such items, as in `stages: [{sft: {...}}, {distill: {...}}]`."""
    matches = [item for item in items if isinstance(item, dict) and list(item) == [key]]
    if len(matches) != 1:
        count = len(matches) or "none"
        raise InputError(f"the override {override!r} needs an item {key} in the list {parent}, which has {count}; override {parent} itself")
    return matches[0]


def validate_config(model: type[M], values: dict) -> M:
    """The values as a config. Raises InputError with one sentence about the first problem; unknown keys come first."""
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False)
        unknown = [p for p in problems if p["type"] == "extra_forbidden"]
        raise InputError(_problem_sentence(model, (unknown or problems)[0])) from None


def _problem_sentence(model: type[BaseModel], problem: Any) -> str:
    parts = [str(part) for part in problem["loc"]]
    key = ".".join(part for part in parts if "[" not in part)  # pydantic adds the type of a union that it tried, such as dict[str,any]
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
        return f"{key} is not a known key; " + (f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}")
    if problem["type"] == "missing":
        return f"{key} is missing from the config and has no default; give it a value"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} = {problem['input']!r} does not fit: {message[0].lower() + message[1:]}"


def _fields_at(model: type[BaseModel], location: tuple) -> list[str]:
    """The field names of the section at `location`, sorted; list indices and names of mappings in it are skipped."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            types = getattr(annotation, "__args__", None) or (annotation,)
            sections = [type_ for type_ in types if isinstance(type_, type) and issubclass(type_, BaseModel)]
            if not sections:
                break
            model = sections[0]
    return sorted(model.model_fields)
