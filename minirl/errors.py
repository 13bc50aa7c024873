"""The two errors that end a run early on purpose: InputError (exit code 2) and RunError (exit code 1)."""


class InputError(Exception):
    """The user's input cannot be used. The message is one sentence: what is wrong and what to do. Exit code 2."""


class RunError(Exception):
    """A running system reached a state that it must not continue from (a non-finite loss, a failed checksum). Exit code 1."""
