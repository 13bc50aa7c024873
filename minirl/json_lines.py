"""Files of one JSON object a line, appended to by processes that may be killed in the middle of a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path) -> Iterator[dict[str, Any]]:
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
