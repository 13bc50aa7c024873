"""The two ways a run ends early by its own decision."""


class InputError(Exception):
    """What the user gave cannot be used. The message is one sentence: what is wrong and what to do. Exit code 2."""


class RunError(Exception):
    """A running system found itself in a state it must not continue from (a non-finite loss, a failed checksum). Exit code 1."""
