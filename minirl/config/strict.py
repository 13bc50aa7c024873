"""StrictModel: the base of every config section, strict and immutable; and paths, with `~` and `$VAR` expanded."""

import os
import re
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator


class PlainInt(int):
    """An integer that stands in YAML without quotes. text: its characters in the file."""

    text: str


class PlainFloat(float):
    """A number with a fraction or an exponent that stands in YAML without quotes. text: its characters in the file."""

    text: str


class PlainWord(str):
    """A word without quotes that is a boolean in YAML 1.1 and a text in YAML 1.2, such as `off`."""

    SWITCHES = {"on": True, "yes": True, "y": True, "off": False, "no": False, "n": False}


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_the_keys_type_says(cls, value: Any, info: ValidationInfo) -> Any:
        return fit(value, cls.model_fields[info.field_name].annotation)


def fit(value: Any, annotation: Any) -> Any:
    """Reads what YAML leaves open as `annotation` says: `off` is False for a boolean, `010` is a text for a text. Other values pass."""
    types = _leaf_types(annotation)
    if isinstance(value, PlainWord) and bool in types and str not in types:
        return PlainWord.SWITCHES[value.lower()]
    if isinstance(value, PlainInt | PlainFloat) and str in types and not types & {int, float, Any}:
        return value.text
    if isinstance(value, list) and (arguments := _arguments_of(annotation, list)):
        return [fit(item, arguments[0]) for item in value]
    if isinstance(value, dict) and (arguments := _arguments_of(annotation, dict)):
        return {key: fit(item, arguments[1]) for key, item in value.items()}
    return value


def _leaf_types(annotation: Any) -> set[Any]:
    """The types that the annotation accepts, through `X | Y`, Annotated and Literal."""
    if hasattr(annotation, "__metadata__"):
        return _leaf_types(annotation.__origin__)
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_leaf_types, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return {get_origin(annotation) or annotation}


def _arguments_of(annotation: Any, container: type) -> tuple[Any, ...]:
    """The arguments of `list[...]` or `dict[...]` in the annotation, perhaps one of several alternatives; () if there is none."""
    if get_origin(annotation) in (Union, UnionType):
        return next((arguments for a in get_args(annotation) if (arguments := _arguments_of(a, container))), ())
    return get_args(annotation) if get_origin(annotation) is container else ()


def expand_path(text: str) -> str:
    """The path with `~` and `$VAR` replaced. A path that exists as it stands, and text without either, stay. Raises ValueError."""
    if not text.strip():
        raise ValueError("it is empty; give a name or a path")
    if "\0" in text:
        raise ValueError("it contains a NUL character; remove it")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"it contains half a character ({ascii(text[error.start])[1:-1]}), which no path can; remove it") from None
    if not ("$" in text or text.startswith("~")) or os.path.exists(text):
        return text
    expanded = os.path.expandvars(os.path.expanduser(text))
    if text.startswith("~") and expanded.startswith("~"):
        raise ValueError(f"{text.split('/')[0]} is not the home of a known user; write the path out")
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise ValueError(f"the environment variable {unset[1]} in {text} is not set; set it, or write the path out")
    return expanded


PathText = Annotated[str, AfterValidator(expand_path)]
