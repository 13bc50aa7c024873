"""README, CONTRIBUTING and docs/: every relative link leads somewhere, and every command in them exists and reads its config."""

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from launch.cli import app
from launch.config import RunConfig
from minirl.config.experiment import ExperimentConfig
from minirl.config.reader import read_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docker" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (
    "make ",
    "minirl ",
    ".venv/bin/minirl ",
    ".venv/bin/python ",
    "python -m ",
    "pytest ",
    ".venv/bin/pip ",
    "pip ",
    "apt-get ",
    "hf ",
    "git ",
    "docker ",
    "kubectl ",
    "sbatch ",
)
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))


def commands_of(page: Path) -> list[str]:
    """Commands in code blocks, fenced or indented, and in inline code; comments are cut and continued lines joined."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) + ["\n".join(re.findall(r"^    (.*)$", text, re.M))]
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    return [re.sub(r"(^|\s)#.*$", "", line).strip() for line in lines if line.startswith(COMMANDS)]


def check_command(command: str) -> None:
    """Raises AssertionError or the command's own error where the command cannot work. Words in capitals are placeholders."""
    words = shlex.split(command)
    if words[0] in ("docker", "kubectl", "sbatch"):
        check_files(words)
        return
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "python":
        assert arguments[0] == "-m", command
        program, arguments = arguments[1], arguments[2:]
    if program == "make":
        targets = [word for word in arguments if "=" not in word]
        assert set(targets) <= TARGETS, command
    elif program == "minirl":
        check_minirl(arguments)
    elif program == "pytest":
        for path in (word.partition("::")[0] for word in arguments if word.startswith("tests")):
            assert (ROOT / path).exists(), command
    elif program not in ("pip", "apt-get", "hf", "git"):
        assert importlib.util.find_spec(program), f"{command}: there is no module {program}"


def check_files(words: list[str]) -> None:
    """The files of this repository that another program's command names exist, and a `minirl` command inside it can be given."""
    for word in words:
        if word.startswith(("docker/", "configs/")):
            assert (ROOT / word).is_file(), f"{word} of {words[0]} does not exist"
    if "exec" in words and "minirl" in words:
        check_minirl(words[words.index("minirl") + 1 :])
    if words[0] == "sbatch":
        arguments = next(words[index + 1 :] for index, word in enumerate(words) if word.startswith("docker/"))
        check_minirl(["submit", *arguments, "--address", "http://HEAD:8265"])


def check_minirl(arguments: list[str]) -> None:
    """Parses the verb with its options, and reads the config with its overrides, where there is one."""
    group = typer.main.get_command(app)
    assert arguments[0] in group.commands, arguments
    if len(arguments) == 1:
        return
    context = group.commands[arguments[0]].make_context(arguments[0], arguments[1:], parent=click.Context(group))
    config = context.params.get("config")
    if config is not None and not str(config).isupper():
        overrides = [override for override in context.params["overrides"] or () if override != "..."]
        model = ExperimentConfig if arguments[0] == "experiment" else RunConfig
        read_config(model, ROOT / config, overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors_of(linked), f"{page.name} links to {target}"


def anchors_of(page: Path) -> set[str]:
    """Headings as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_code_exist(page):
    for path in re.findall(r"`((?:minirl|actors|launch|configs|docs|docker|tests)/[\w./-]*)`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.fixture(autouse=True)
def address_of_a_cluster(monkeypatch):
    """Commands of jobs read it, so that a page need not repeat it."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://HEAD:8265")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_given(page):
    for command in commands_of(page):
        check_command(command)


@pytest.mark.parametrize(
    "command",
    [
        "make everything",
        "minirl fly",
        "minirl run configs/quickstart.yaml --fast",
        "minirl run configs/quickstart.yaml stages.distil.iterations=3",
        "python -m tests.nothing",
        "docker build -f docker/Dockerfile.none .",
        "kubectl exec service/minirl-head-svc -- minirl submit configs/quickstart.yaml --addres http://localhost:8265",
        "sbatch docker/slurm.sbatch configs/quickstart.yaml directry=/shared/runs/quickstart",
        "pytest tests/none.py",
    ],
)
def test_a_wrong_command_is_noticed(command):
    with pytest.raises(Exception):  # noqa: B017 (an assertion of the check, or the error of what the command calls)
        check_command(command)
