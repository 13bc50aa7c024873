"""Checkpoints that are either whole or not there: the manifest is written last, and only what it names is trusted.

checkpoints/00000012/          named by the count of iterations or updates that it follows
    learner/, random-0.pt      what the learner wrote
    manifest.json              the driver's state, and every file with its size; written last, by rename
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minirl.errors import InputError
from minirl.files import write_json

MANIFEST = "manifest.json"


def write(directory: Path, number: int, state: dict[str, Any], save: Callable[[str], None], *, keep: int = 1) -> Path:
    """Let `save` fill a new directory, then make it valid with its manifest; older ones but the newest `keep` are removed after."""
    target = directory / f"{number:08d}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    save(str(target))
    files = {str(f.relative_to(target)): f.stat().st_size for f in sorted(target.rglob("*")) if f.is_file()}
    write_json(target / MANIFEST, {"state": state, "files": files})
    for old in complete(directory)[:-keep]:
        shutil.rmtree(old)
    return target


def latest(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its state; half-written ones are passed over. Raises InputError where a named file is damaged."""
    found = complete(directory)
    if not found:
        return None
    manifest = json.loads((found[-1] / MANIFEST).read_text())
    for name, size in manifest["files"].items():
        file = found[-1] / name
        if not file.is_file() or file.stat().st_size != size:
            raise InputError(f"the checkpoint {found[-1]} is damaged at {name}; delete that directory to go on from the one before it")
    return found[-1], manifest["state"]


def complete(directory: Path) -> list[Path]:
    """Checkpoints that have their manifest, oldest first."""
    return sorted(manifest.parent for manifest in directory.glob(f"*/{MANIFEST}"))
