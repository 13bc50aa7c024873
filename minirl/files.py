"""Files that survive a kill: JSON written atomically, JSON lines cut to whole lines, and SHA-256."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part of it."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file with one on each line."""
    with path.open() as file:
        yield from map(json.loads, file)


def drop_incomplete_line(path: Path) -> int:
    """Cut off a last line without a line feed, which a kill left half written. Returns the number of whole lines, 0 if no file exists."""
    if not path.is_file():
        return 0
    lines = size = 0
    with path.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(size)
                break
            lines, size = lines + 1, size + len(line)
    return lines


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
