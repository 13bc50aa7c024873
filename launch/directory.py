"""A run's directory: claimed by one process, for one experiment; errors of files and disks become one sentence."""

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.config import RunConfig
from minirl.config.reader import validate_config
from minirl.config.strict import expand_path
from minirl.errors import InputError, first_line

CONFIG_RECORD = "config.json"
# A directory belongs to one experiment: these keys may not change between starts. Workers, limits and lengths of stages may.
IDENTITY_KEYS = ("seed", "student", "data", "corpus", "objective")
OS_ERROR_IN_RUST = re.compile(r"\(os error (\d+)\)")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
ADVICE = {
    errno.ENOSPC: "the disk is full; free space or use another disk",
    errno.EDQUOT: "your quota of the disk is used up; free space or use another disk",
    errno.EACCES: "this user may not use it; change its permissions or name another path",
    errno.EPERM: "this user may not use it; change its permissions or name another path",
    errno.EROFS: "its file system is read-only; name another path",
    errno.ENAMETOOLONG: "its name is too long; name a shorter path",
    errno.ENOTDIR: "a part of the path is a file and no directory; name another path",
    errno.EISDIR: "it is a directory where a file belongs; name a file",
    errno.EEXIST: "something else has that name already; name another path, or delete it",
    errno.ELOOP: "it is a symbolic link that leads in a circle; mend the link",
    errno.EMFILE: "this process may open no more files; raise the limit (`ulimit -n`)",
}


@contextmanager
def file_errors_as_sentences(where: str = "") -> Iterator[None]:
    """Any error of the system in the block becomes an InputError with the path and the system's own words.

    where: the path, if the error has none. Libraries written in Rust, as safetensors, raise types of their own with "(os error 28)".
    """
    try:
        yield
    except OSError as error:
        raise InputError(os_error_sentence(error, where)) from None
    except Exception as error:
        if number := OS_ERROR_IN_RUST.search(str(error)):
            raise InputError(os_error_sentence(OSError(int(number[1]), first_line(error)), where)) from None
        raise


def os_error_sentence(error: OSError, where: str = "") -> str:
    path = error.filename2 or error.filename or where
    reason = error.strerror or first_line(error)
    return f"cannot use {path or 'a file'}: {reason}; {ADVICE.get(error.errno, 'check the path and its disk')}"


def path_argument(option: str, text: str) -> Path:
    """The path that the command line gives, with `~` and `$VAR` expanded (a shell expands neither in `--out=~/x`)."""
    try:
        return Path(expand_path(text))
    except ValueError as error:
        raise InputError(f"{option}: {error}") from None


@contextmanager
def claim_directory(config: RunConfig) -> Iterator[Path]:
    """Makes the run's directory and locks it for this process until the block ends.

    Raises InputError if it cannot be made or written, if another run works in it, or if it holds another experiment.
    """
    directory = Path(config.directory)
    with file_errors_as_sentences(str(directory)):
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("a+")
    with lock:
        with file_errors_as_sentences(str(directory / ".lock")):
            _lock(lock, directory)
        _check_same_experiment(config, directory)
        yield directory


def _lock(lock: Any, directory: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = f" (process {owner})" if (owner := lock.read().strip()) else ""
        raise InputError(f"another run{holder} is working in {directory}; wait for it, or give another directory=...") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()


def _check_same_experiment(config: RunConfig, directory: Path) -> None:
    before, now = _recorded_config(directory), config.model_dump()
    if before is None:
        return
    changed = [key for key in IDENTITY_KEYS if before.get(key) != now[key]]
    changed += [f"teacher.{key}" for key in ("model", "ensemble") if before["teacher"].get(key) != now["teacher"][key]]
    if changed:
        raise InputError(f"{directory} holds a run with another {changed[0]}; give another directory=..., or delete it")


def _recorded_config(directory: Path) -> dict[str, Any] | None:
    """The config that the directory was made with; a key that did not exist yet has its default. None if nothing is recorded."""
    record = directory / CONFIG_RECORD
    if not record.is_file():
        return None
    try:
        values = json.loads(record.read_text())
        values["teacher"].get("model")
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise InputError(f"{record} is not the record of a run ({first_line(error)}); give another directory=..., or delete it") from None
    try:
        return validate_config(RunConfig, values).model_dump()
    except InputError:  # a version of the program with other keys wrote it
        return values
