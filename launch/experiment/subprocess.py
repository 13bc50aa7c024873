"""Runs a command as a child process that gets time to stop its own processes when this one is interrupted."""

import subprocess
from pathlib import Path

GRACE_S = 60.0


def run_to_end(command: list[str], log: Path, grace_s: float = GRACE_S) -> int:
    """Run the command and return its exit code; its output is appended to `log`.

    When this process is interrupted, the child gets SIGTERM, and SIGKILL after `grace_s` seconds. The child has a process group of its own:
    otherwise a terminal's Ctrl-C would also signal it directly, so that a second signal would interrupt its cleanup.
    """
    with log.open("a") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, process_group=0) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            try:
                child.wait(grace_s)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
