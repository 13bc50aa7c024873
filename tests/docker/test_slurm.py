"""docker/slurm.sbatch: bash and Slurm can read it, and no command line holds the token."""

import re
import subprocess
from pathlib import Path

from tests.deadlines import deadline

SCRIPT = Path(__file__).parents[2] / "docker" / "slurm.sbatch"


def test_bash_can_read_the_script():
    checked = subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True, timeout=deadline(5))
    assert (checked.returncode, checked.stderr) == (0, "")


def test_slurm_reads_its_options():
    """Slurm stops at the first line that is neither a comment nor empty."""
    head = SCRIPT.read_text().partition("set -euo pipefail")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", head, re.M))
    assert options["ntasks-per-node"] == "1" and "exclusive" in options
    assert options["signal"].startswith("B:TERM@")  # to the script alone: Ray has to live until the checkpoint is written


def test_no_command_line_holds_the_token():
    """The environment carries it: other users of a node can read command lines."""
    lines = [line for line in SCRIPT.read_text().splitlines() if "AUTH_TOKEN" in line]
    assert lines and all(re.match(r"RAY_AUTH_TOKEN=|export ", line) and "$RAY_AUTH" not in line for line in lines)
