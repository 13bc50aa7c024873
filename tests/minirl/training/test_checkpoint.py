import os
from pathlib import Path

import pytest

from minirl.errors import InputError
from minirl.training import checkpoint


def saving(text: str):
    """What a learner does: fill the directory that it is given."""

    def save(directory: str) -> None:
        (Path(directory) / "learner").mkdir()
        (Path(directory) / "learner" / "weights.bin").write_text(text)
        (Path(directory) / "random.bin").write_text(text[::-1])

    return save


def half_way(directory: str) -> None:
    saving("half")(directory)
    raise KeyboardInterrupt


def interrupted(*paths: Path) -> None:
    raise KeyboardInterrupt


def content(directory: Path) -> str:
    return (directory / "learner" / "weights.bin").read_text()


def test_what_was_written_is_found_with_its_state(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    written = checkpoint.write(tmp_path, 12, {"iteration": 12, "cursors": {"prompts": [1, 2]}}, saving("twelve"))
    assert written.name == "00000012"
    assert checkpoint.latest(tmp_path) == (written, {"iteration": 12, "cursors": {"prompts": [1, 2]}})
    assert content(written) == "twelve"


def test_the_manifest_comes_after_everything_else(tmp_path):
    seen = []

    def save(directory: str) -> None:
        saving("x")(directory)
        seen.extend(p.name for p in Path(directory).rglob("*"))

    written = checkpoint.write(tmp_path, 1, {}, save)
    assert seen and checkpoint.MANIFEST not in seen
    assert (written / checkpoint.MANIFEST).is_file()


def test_a_write_that_ends_half_way_leaves_the_one_before_whole(tmp_path):
    first = checkpoint.write(tmp_path, 1, {"iteration": 1}, saving("one"))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, 2, {"iteration": 2}, half_way)
    assert checkpoint.latest(tmp_path) == (first, {"iteration": 1}) and content(first) == "one"


def test_a_manifest_that_ends_half_way_does_not_count(tmp_path, monkeypatch):
    first = checkpoint.write(tmp_path, 1, {"iteration": 1}, saving("one"))
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, 2, {"iteration": 2}, saving("two"))
    assert checkpoint.latest(tmp_path) == (first, {"iteration": 1})


def test_what_a_half_written_one_left_is_not_in_the_way_of_the_next(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, 2, {}, half_way)
    (tmp_path / "00000002" / "of-another-layout.bin").write_text("old")
    written = checkpoint.write(tmp_path, 2, {"iteration": 2}, saving("two"))
    assert content(written) == "two" and not (written / "of-another-layout.bin").exists()
    assert checkpoint.latest(tmp_path)[0] == written


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept_and_the_rest_removed(tmp_path, keep):
    for number in (8, 9, 10, 11):
        checkpoint.write(tmp_path, number, {"iteration": number}, saving(str(number)), keep=keep)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"{n:08d}" for n in (8, 9, 10, 11)[-keep:]]
    assert checkpoint.latest(tmp_path)[1] == {"iteration": 11}


def test_the_older_ones_stay_until_the_new_one_is_whole(tmp_path):
    first = checkpoint.write(tmp_path, 1, {}, saving("one"))
    checkpoint.write(tmp_path, 2, {}, lambda directory: (saving("two")(directory), checkpoint.latest(tmp_path)[0] == first or 1 / 0))
    assert not first.exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_a_damaged_file_is_named(tmp_path, damage):
    checkpoint.write(tmp_path, 1, {}, saving("one"), keep=2)
    second = checkpoint.write(tmp_path, 2, {}, saving("two"), keep=2)
    damage(second / "learner" / "weights.bin")
    with pytest.raises(InputError, match=r"00000002 is damaged at learner/weights.bin"):
        checkpoint.latest(tmp_path)


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "summary.json"
    checkpoint.write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        checkpoint.write_json(file, {"a": 2, "b": object()})
    assert file.read_text() == '{\n  "a": 1\n}\n'
