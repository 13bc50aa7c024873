"""lasting_imports: imports without the garbage collector, whose passes over so many objects take a quarter of the time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """For imports at the start of a process, whose objects live as long as the process.

    The collector does not run inside the block. If the block imported anything, the collector never looks at the objects that are there
    when the block ends: garbage among them stays. Blocks may be nested.
    """
    was_enabled, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if len(sys.modules) > modules:
                gc.freeze()
            gc.enable()
