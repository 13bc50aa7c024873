"""Another command in a process of its own, which is given time to end its own processes where this one is interrupted."""

import subprocess
from pathlib import Path

ENDING_S = 60.0


def run_to_end(command: list[str], log: Path, ending_s: float = ENDING_S) -> int:
    """Its exit code; what it prints is appended to `log`. Where this process is interrupted it is told to end, and killed after `ending_s`.

    It stands in a process group of its own: a terminal's Ctrl-C would reach it twice, the second time in the middle of its ending.
    """
    with log.open("a") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, process_group=0) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            try:
                child.wait(ending_s)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
