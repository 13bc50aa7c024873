"""The first check of `make install` reports each thing that the machine lacks in one sentence."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launch.install import prerequisites

SCRIPT = Path(prerequisites.__file__)


def run_script(**environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT], env={**os.environ, **environment}, capture_output=True, text=True)


def assert_one_sentence(text: str, *words: str) -> None:
    assert len(text.strip().splitlines()) == 1, text
    assert text.strip().endswith(".")
    for word in words:
        assert word in text


def test_this_machine_has_everything():
    """The suite was installed on this machine, so any problem reported here is a false alarm."""
    result = run_script()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_missing_compiler_is_one_sentence():
    result = run_script(CXX="no-such-compiler")
    assert result.returncode == 1
    assert_one_sentence(result.stderr, "C++ compiler no-such-compiler", "CXX")


def test_empty_path_names_make_and_compiler(tmp_path):
    result = run_script(PATH=str(tmp_path), CXX="")
    assert result.returncode == 1
    make, compiler = result.stderr.strip().splitlines()
    assert_one_sentence(make, "make is missing")
    assert_one_sentence(compiler, "C++ compiler c++ is missing")


def test_missing_header_is_one_sentence(tmp_path):
    assert_one_sentence(prerequisites.headers_problem(str(tmp_path)), f"{tmp_path}/Python.h", "python3-dev")


def test_missing_header_is_reported_once(tmp_path, monkeypatch):
    """Without Python.h the compiler fails too; only the cause is reported."""
    monkeypatch.setattr(prerequisites.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    (sentence,) = prerequisites.problems()
    assert_one_sentence(sentence, "Python.h is missing")


def test_compiler_without_its_library_is_one_sentence(tmp_path):
    """A C++ compiler that exists and cannot compile is as bad as none; the sentence quotes its first error."""
    compiler = tmp_path / "broken-c++"
    compiler.write_text("#!/bin/sh\necho 'stdin:2:10: fatal error: vector: No such file or directory' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    assert_one_sentence(prerequisites.compiler_problem(str(compiler)), "fatal error: vector: No such file or directory")


@pytest.mark.parametrize(("implementation", "version"), [("CPython", (3, 10)), ("CPython", (3, 8)), ("PyPy", (3, 11))])
def test_wrong_python_is_one_sentence(implementation, version):
    assert_one_sentence(prerequisites.python_problem(implementation, version), implementation, "CPython 3.11 or newer")


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (4, 0)])
def test_right_python_is_no_problem(version):
    assert prerequisites.python_problem("CPython", version) is None


def test_missing_venv_module_is_one_sentence():
    assert_one_sentence(prerequisites.venv_problem(("venv", "no_such_module")), "no_such_module", "python3-venv")


def test_missing_library_is_one_sentence():
    assert_one_sentence(prerequisites.library_problem("libno-such.so.1"), "libno-such.so.1", "libnuma1")


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_one_sentence(system):
    assert_one_sentence(prerequisites.system_problem(system), system, "Linux")


def test_script_keeps_to_syntax_of_older_pythons():
    """Python 3.8 must be able to run the script, which therefore compiles under its grammar and imports only the standard library."""
    import ast

    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names)
