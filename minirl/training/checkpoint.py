"""Checkpoints on disk: a directory counts as a checkpoint only once its `manifest.json` exists, which is written last.

checkpoints/00000012/          the number of finished iterations or updates
    learner/, random-0.pt      the learner's files
    manifest.json              the driver's state, and the name and size of every file; written last, by rename
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
    """Create a checkpoint and return its directory. Afterwards only the newest `keep` checkpoints remain.

    save: writes the learner's files into the directory that it receives. state: the driver's state, as JSON values.
    """
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
    """The newest complete checkpoint and its state, or None. Ignores half-written ones.

    Raises InputError if a file of that checkpoint is missing or has another size than `manifest.json` says.
    """
    checkpoints = complete(directory)
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    manifest = json.loads((newest / MANIFEST).read_text())
    for name, size in manifest["files"].items():
        file = newest / name
        if not file.is_file() or file.stat().st_size != size:
            raise InputError(f"the checkpoint {newest} is damaged at {name}; delete that directory to resume from the checkpoint before it")
    return newest, manifest["state"]


def complete(directory: Path) -> list[Path]:
    """Checkpoints that have a `manifest.json`, oldest first."""
    return sorted(manifest.parent for manifest in directory.glob(f"*/{MANIFEST}"))
