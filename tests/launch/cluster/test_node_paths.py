"""The paths of a config as the nodes of a cluster see them."""

import pytest
import yaml

from launch.cluster.node_paths import prepared_for_nodes
from launch.config import RunConfig
from minirl.config.reader import validate_config
from minirl.errors import InputError

CONFIG = """
directory: runs/here
teacher: {model: org/teacher}
student: {model: students/small}
data: {train: [records.jsonl, org/hub-set, /shared/on/the/nodes.jsonl], test: embedded:chatterbot}
corpus: {source: big.txt}
stages: {sft: {learning_rate: 1.0e-3, max_updates: 1}, evaluate: {sets: {own: {source: more.json}}}}
"""


@pytest.fixture
def config(tmp_path, monkeypatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "students" / "small").mkdir(parents=True)
    for name in ("records.jsonl", "more.json", "big.txt"):
        (tmp_path / name).write_text("[]" * 100)
    return validate_config(RunConfig, yaml.safe_load(CONFIG))


def test_small_data_is_carried_and_other_local_paths_become_absolute(config, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.cluster.node_paths.LARGEST_DATA_MB", 500e-6)
    (tmp_path / "big.txt").write_text("a" * 1000)
    carried = []
    values, notes = prepared_for_nodes(config, lambda path: carried.append(path) or f"data/{len(carried)}")
    assert values["directory"] == f"{tmp_path}/runs/here"
    assert values["student"]["model"] == f"{tmp_path}/students/small" and values["teacher"]["model"] == "org/teacher"
    assert [source["source"] for source in values["data"]["train"]] == ["data/1", "org/hub-set", "/shared/on/the/nodes.jsonl"]
    assert values["data"]["test"] == "embedded:chatterbot"
    assert values["corpus"]["source"] == f"{tmp_path}/big.txt"
    assert values["stages"]["evaluate"]["sets"]["own"]["source"] == "data/2"
    assert carried == [f"{tmp_path}/records.jsonl", f"{tmp_path}/more.json"]
    assert notes == [
        f"the run writes to {tmp_path}/runs/here, which every node must see",
        f"student.model is {tmp_path}/students/small, which every node must see",
        f"corpus.source is {tmp_path}/big.txt, which every node must see",
    ]
    assert validate_config(RunConfig, values).directory == f"{tmp_path}/runs/here", "the driver must be able to read the result"


def test_relative_data_that_is_not_here_is_refused(config, tmp_path):
    (tmp_path / "more.json").unlink()
    with pytest.raises(InputError, match=r"stages\.evaluate\.sets\.own\.source: there is no more\.json here; correct it, or give the abs"):
        prepared_for_nodes(config, lambda path: path)
