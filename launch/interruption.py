"""Interruption by SIGINT or SIGTERM: a KeyboardInterrupt at once, or at the end of a block that must not be cut in two."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

INTERRUPTED = 130  # exit code of a command that was interrupted


class Interruption:
    """The signals that interrupt this process."""

    def __init__(self) -> None:
        self._announce: Callable[[], None] | None = None  # inside a block that must not be cut
        self._pending = False

    def install(self) -> None:
        """Handles the signals from now on. A shell starts background jobs with SIGINT ignored; this changes that too."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    @contextmanager
    def deferred(self, announce: Callable[[], None]) -> Iterator[None]:
        """A block that a first signal does not cut: KeyboardInterrupt follows at its end. A second signal raises it at once.

        announce: called at the first signal, on another thread, since the signal may have interrupted a print.
        """
        self._announce = announce
        try:
            yield
        finally:
            self._announce = None
            pending, self._pending = self._pending, False
        if pending:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: object) -> None:
        if self._announce is None or self._pending:
            raise KeyboardInterrupt
        self._pending = True
        Thread(target=self._announce, daemon=True).start()


INTERRUPTION = Interruption()  # of this process
