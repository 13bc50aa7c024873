"""The errors that end a run on purpose, InputError (exit code 2) and RunError (1), and the first line of any other error."""

import re

_TERMINAL_COLOR = re.compile("\x1b\\[[0-9;]*m")


class InputError(Exception):
    """The user's input cannot be used. The message is one sentence: what is wrong and what to do. Exit code 2."""


class RunError(Exception):
    """A running system reached a state that it must not continue from (a non-finite loss, a failed checksum). Exit code 1."""


def without_colors(text: str) -> str:
    """The text without a terminal's colour codes."""
    return _TERMINAL_COLOR.sub("", text)


def first_line(error: BaseException) -> str:
    """The first line of a library's message without its last full stop, at most 300 characters; the error's type if it has no message."""
    lines = [line for line in without_colors(str(error)).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].rstrip().endswith(":"):  # a heading
        lines[0] += lines[1]
    line = lines[0].partition("; use sys.set_int_max_str_digits")[0] if lines else type(error).__name__  # Python's advice to programmers
    return " ".join(line.split())[:300].rstrip(".")
