"""The paths of a config as a cluster's nodes see them: small local data is carried there, others become absolute."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from launch.config import RunConfig
from minirl.config.strict import StrictModel, expand_path
from minirl.data.record_files import FORMATS
from minirl.errors import InputError

LARGEST_DATA_MB = 50  # Ray accepts working directories up to 500 MiB; every node copies them


def prepared_for_nodes(config: RunConfig, carry: Callable[[str], str]) -> tuple[dict[str, Any], list[str]]:
    """The config with paths that hold on every node, and a sentence for each path that the nodes must see.

    Small local data is carried: `carry(path)` names its place in the working directory. Other local paths become absolute. What is no
    local path stays, because it names something on the hub, in a package or on the nodes. Raises InputError for a relative path of data
    that is not here.
    """
    notes, sizes = [], 0

    def on_nodes(key: str, text: str) -> str:
        nonlocal sizes
        path = Path(text)
        is_model = key.endswith(".model")
        if key == "directory":
            notes.append(f"the run writes to {path.absolute()}, which every node must see")
            return str(path.absolute())
        if text.startswith("embedded:") or not path.exists():
            if not is_model and not path.is_absolute() and any(text.endswith((ending, f"{ending}.gz")) for ending in FORMATS):
                raise InputError(f"{key}: there is no {text} here; correct it, or give the absolute path that all nodes see")
            return text
        size = _megabytes(path)
        if not is_model and sizes + size <= LARGEST_DATA_MB:
            sizes += size
            return carry(str(path.absolute()))
        notes.append(f"{key} is {path.absolute()}, which every node must see")
        return str(path.absolute())

    return _with_paths(config, on_nodes, ""), notes


def _megabytes(path: Path) -> float:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 1e6


def _with_paths(section: StrictModel, change: Callable[[str, str], str], prefix: str) -> dict[str, Any]:
    """The values of a section, with `change(key, path)` in place of every path."""
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, str) and _is_path(field):
            values[name] = change(key, value)
        elif isinstance(value, StrictModel):
            values[name] = _with_paths(value, change, f"{key}.")
        elif isinstance(value, list):
            values[name] = [
                _with_paths(item, change, f"{key}.{index}.") if isinstance(item, BaseModel) else values[name][index]
                for index, item in enumerate(value)
            ]
        elif isinstance(value, dict):
            values[name] = {
                item: _with_paths(inner, change, f"{key}.{item}.") if isinstance(inner, BaseModel) else values[name][item]
                for item, inner in value.items()
            }
    return values


def _is_path(field: Any) -> bool:
    """Whether the field's type is PathText, perhaps as one of several alternatives."""
    metadata = [*field.metadata, *(item for type_ in get_args(field.annotation) for item in getattr(type_, "__metadata__", ()))]
    return any(getattr(item, "func", None) is expand_path for item in metadata)
