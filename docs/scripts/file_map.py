"""Writes the file map of CONTRIBUTING.md: the tree of the three packages and the configs, one line a file.

A module's line is the first line of its docstring, a directory's that of its `__init__.py`, and a config's its first comment.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from docs.scripts.generated import ROOT, replace_between, write_or_check

PACKAGES = ("minirl", "actors", "launch")
NAME_WIDTH, LINE_WIDTH = 28, 150


def file_map(root: Path) -> str:
    """The tree as a fenced block. Raises SystemExit where a module has no usable first line."""
    lines = [line for package in PACKAGES for line in _directory(root / package, depth=0)]
    lines.append(_line("configs/", "One commented YAML for each recipe; a test loads every one.", 0))
    lines += [_line(config.name, _first_comment(config), 1) for config in sorted((root / "configs").glob("*.yaml"))]
    return "\n".join(["```text", *lines, "```"])


def _directory(directory: Path, depth: int) -> Iterator[str]:
    """Files before directories, each in alphabetical order."""
    yield _line(f"{directory.name}/", _first_line(directory / "__init__.py"), depth)
    for module in sorted(directory.glob("*.py")):
        if module.name != "__init__.py":
            yield _line(module.name, _first_line(module), depth + 1)
    for package in sorted(path.parent for path in directory.glob("*/__init__.py")):
        yield from _directory(package, depth + 1)


def _first_line(module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    line = docstring.splitlines()[0] if docstring else ""
    if not line.endswith("."):
        raise SystemExit(
            f"{module}: the first line of the module's docstring must be a sentence that ends with a full stop; it is {line!r}"
        )
    return line


def _first_comment(config: Path) -> str:
    return config.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


def _line(name: str, text: str, depth: int) -> str:
    line = f"{'  ' * depth + name:<{NAME_WIDTH}}  {text}"
    if len(line) > LINE_WIDTH:
        raise SystemExit(f"{name}: the line {text!r} is {len(line) - LINE_WIDTH} characters too long for the file map; shorten it")
    return line


def main() -> int:
    page = ROOT / "CONTRIBUTING.md"
    return write_or_check(page, replace_between(page.read_text(encoding="utf-8"), "file map", file_map(ROOT)))


if __name__ == "__main__":
    sys.exit(main())
