"""Files of one JSON object a line, appended to by processes that may be killed in the middle of a line."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        yield from map(json.loads, file)


def drop_half_line(path: Path) -> int:
    """Cut what a kill left half written; returns the number of whole lines, 0 where there is no file."""
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


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write so that a reader sees the old file or the new one, never half of it."""
    staging = path.with_name(path.name + ".partial")
    with staging.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(staging, path)
