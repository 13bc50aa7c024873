"""From a YAML file and overrides to a validated config; the first problem becomes one sentence."""

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic import BaseModel

from minirl.errors import InputError

M = TypeVar("M", bound=BaseModel)


class YamlLoader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that 5e-6 is a number, as in YAML 1.2."""


YamlLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))


def read_config(model: type[M], path: str | Path, overrides: list[str]) -> M:
    """Read a YAML file, apply `key.path=value` overrides, and validate. Raises InputError with one sentence."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), YamlLoader)
    except OSError as error:
        raise InputError(f"cannot read the config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"the config {path} is not UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of keys to values")
    for override in overrides:
        _apply_override(values, override)
    return validate_config(model, values)


def _apply_override(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"the override {override!r} must have the form key.path=value")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise InputError(f"the override {override!r} goes through {parent}, which is a value and has no keys")
    try:
        values[last] = yaml.load(text, YamlLoader)
    except yaml.YAMLError:
        raise InputError(f"the value of the override {override!r} is not valid YAML") from None


def validate_config(model: type[M], values: dict) -> M:
    """Validate; the first problem becomes one sentence."""
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False)
        unknown = [p for p in problems if p["type"] == "extra_forbidden"]
        raise InputError(_sentence(model, (unknown or problems)[0])) from None


def _sentence(model: type[BaseModel], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        siblings = _fields_at(model, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), siblings, n=1, cutoff=0.5)
        return f"{key} is not a known key; " + (f"did you mean {close[0]}?" if close else f"known here: {', '.join(siblings)}")
    if problem["type"] == "missing":
        return f"{key} is missing from the config and has no default"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} = {problem['input']!r} does not fit: {message[0].lower() + message[1:]}"


def _fields_at(model: type[BaseModel], location: tuple) -> list[str]:
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            kinds = getattr(model.model_fields[part].annotation, "__args__", None) or (model.model_fields[part].annotation,)
            nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
            if not nested:
                break
            model = nested[0]
    return sorted(model.model_fields)
