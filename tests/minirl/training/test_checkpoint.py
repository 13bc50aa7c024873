"""Checkpoints: only complete ones count, the newest are kept, and damage is reported."""

import os
from pathlib import Path

import pytest

from minirl.errors import InputError
from minirl.training import checkpoint


def saving(text: str):
    """A `save` function that writes files into its directory, as a learner does."""

    def save(directory: str) -> None:
        (Path(directory) / "learner").mkdir()
        (Path(directory) / "learner" / "weights.bin").write_text(text)
        (Path(directory) / "random.bin").write_text(text[::-1])

    return save


def interrupted_save(directory: str) -> None:
    saving("half")(directory)
    raise KeyboardInterrupt


def interrupted(*paths: Path) -> None:
    raise KeyboardInterrupt


def content(directory: Path) -> str:
    return (directory / "learner" / "weights.bin").read_text()


def test_latest_returns_the_written_checkpoint_and_its_state(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    written = checkpoint.write(tmp_path, 12, {"iteration": 12, "cursors": {"prompts": [1, 2]}}, saving("twelve"))
    assert written.name == "00000012"
    assert checkpoint.latest(tmp_path) == (written, {"iteration": 12, "cursors": {"prompts": [1, 2]}})
    assert content(written) == "twelve"


def test_the_manifest_is_written_after_all_other_files(tmp_path):
    names_at_save = []

    def save(directory: str) -> None:
        saving("x")(directory)
        names_at_save.extend(p.name for p in Path(directory).rglob("*"))

    written = checkpoint.write(tmp_path, 1, {}, save)
    assert names_at_save and checkpoint.MANIFEST not in names_at_save
    assert (written / checkpoint.MANIFEST).is_file()


def test_an_interrupted_write_leaves_the_checkpoint_before_it(tmp_path):
    first = checkpoint.write(tmp_path, 1, {"iteration": 1}, saving("one"))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, 2, {"iteration": 2}, interrupted_save)
    assert checkpoint.latest(tmp_path) == (first, {"iteration": 1}) and content(first) == "one"


def test_a_checkpoint_whose_manifest_was_not_finished_does_not_count(tmp_path, monkeypatch):
    first = checkpoint.write(tmp_path, 1, {"iteration": 1}, saving("one"))
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, 2, {"iteration": 2}, saving("two"))
    assert checkpoint.latest(tmp_path) == (first, {"iteration": 1})


def test_files_of_an_interrupted_write_are_removed_by_the_next_write(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, 2, {}, interrupted_save)
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


def test_older_checkpoints_stay_until_the_new_one_is_complete(tmp_path):
    first = checkpoint.write(tmp_path, 1, {}, saving("one"))
    checkpoint.write(tmp_path, 2, {}, lambda directory: (saving("two")(directory), checkpoint.latest(tmp_path)[0] == first or 1 / 0))
    assert not first.exists()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [Path.unlink, truncate])
def test_a_damaged_file_is_named(tmp_path, damage):
    checkpoint.write(tmp_path, 1, {}, saving("one"), keep=2)
    second = checkpoint.write(tmp_path, 2, {}, saving("two"), keep=2)
    damage(second / "learner" / "weights.bin")
    with pytest.raises(InputError, match=r"00000002 is damaged at learner/weights.bin"):
        checkpoint.latest(tmp_path)


def test_a_failed_write_of_json_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "summary.json"
    checkpoint.write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        checkpoint.write_json(file, {"a": 2, "b": object()})
    assert file.read_text() == '{\n  "a": 1\n}\n'
