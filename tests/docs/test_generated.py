"""The file map, the configuration reference and the picture match the code, and the check fails on a stale one."""

import re
import sys

import pytest

from docs.scripts import configuration, data, file_map, five_verbs
from docs.scripts.generated import replace_between, write_or_check
from launch.config import RunConfig
from minirl.config.strict import StrictModel


@pytest.mark.parametrize("script", [configuration, data, file_map, five_verbs], ids=lambda script: script.__name__.rpartition(".")[2])
def test_what_is_committed_is_up_to_date(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--check"])
    assert script.main() == 0


def test_a_page_that_is_out_of_date_fails_the_check_and_is_written_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr("docs.scripts.generated.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("old")
    monkeypatch.setattr(sys, "argv", ["script", "--check"])
    assert write_or_check(page, "new") == 1 and page.read_text() == "old"
    monkeypatch.setattr(sys, "argv", ["script"])
    assert write_or_check(page, "new") == 0 and page.read_text() == "new"


def test_only_what_stands_between_the_markers_is_replaced():
    page = "before <!-- map: begin -->old<!-- map: end --> after"
    assert replace_between(page, "map", "new") == "before <!-- map: begin -->\nnew\n<!-- map: end --> after"
    with pytest.raises(SystemExit, match="markers"):
        replace_between("no markers", "map", "new")


def test_the_file_map_names_every_module_and_refuses_one_without_a_first_line(tmp_path):
    for package in file_map.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text('"""A room."""')
    (tmp_path / "minirl" / "losses.py").write_text('"""The losses.\n\nMore."""')
    lines = file_map.file_map(tmp_path).splitlines()
    assert lines[1].split(maxsplit=1) == ["minirl/", "A room."] and lines[2].split(maxsplit=1) == ["losses.py", "The losses."]
    (tmp_path / "actors" / "silent.py").write_text("x = 1")
    with pytest.raises(SystemExit, match="silent.py"):
        file_map.file_map(tmp_path)


def keys(model=RunConfig, prefix: str = "") -> set[str]:
    """Every key of a run's config, walked here by another way than the reference's."""
    leaves = set()
    for name, field in model.model_fields.items():
        nested = list(configuration._models_in(field.annotation))
        leaves |= {f"{prefix}{name}"} | (keys(nested[0], f"{prefix}{name}.") if nested else set())
    return leaves


def test_the_reference_has_a_row_for_every_key_with_type_default_and_meaning():
    sections = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", configuration.reference(), re.M | re.S))
    for key in keys():
        parent, _, name = key.rpartition(".")
        wanted = f"`{parent}`" if parent else "Top level of a run"
        body = next(text for title, text in sections.items() if wanted in re.sub(r"\[\]|\.NAME", "", title).split(", "))
        (row,) = re.findall(rf"^\| `{name}` \|(.+)\|$", body, re.M)
        kind, default, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", row))
        assert kind and default and meaning, key


def test_types_defaults_and_both_places_of_a_comment_are_read():
    assert configuration._type(RunConfig.model_fields["seed"]).startswith("integer >= 0")
    assert configuration._default(RunConfig.model_fields["directory"]) == "required"

    class Commented(StrictModel):
        behind: int = 3  # the one
        # the other,
        # on two lines
        above: str | None = None
        silent: float = 0.5

    assert configuration._comments(Commented) == {"behind": "the one", "above": "the other, on two lines"}
    with pytest.raises(SystemExit, match="Commented.silent"):
        configuration._meaning(Commented, "silent")
