"""The report of `minirl bench`: its three files and the lines of its tables."""

import json

import pytest
from matplotlib.image import imread

from minirl.bench.report import markdown, save, tables
from tests.minirl.bench.measurements import measurements

ABOUT = {"machine": "1 x a processor, 2 cores", "versions": "torch 2"}


@pytest.fixture
def text() -> str:
    return markdown(measurements(), ABOUT)


def test_the_files(tmp_path):
    files = save(tmp_path / "bench", measurements(), ABOUT)
    assert [file.name for file in files] == ["bench.json", "bench.md", "bench.png"]
    report = json.loads(files[0].read_text())
    assert report["ratios"]["efficiency"]["value"] == pytest.approx(0.8) and report["about"] == ABOUT
    assert report["measurements"]["memory"]["rollout"] == [1_300_000_000, 1_200_000_000]
    assert report["devices"]["teacher"]["mfu"] == pytest.approx(3e11 / 0.6 / 1e12)
    assert report["bottleneck"].startswith("The learner is the bottleneck")
    height, width, _ = imread(files[2]).shape
    assert width > height > 500


@pytest.mark.parametrize(
    "line",
    [
        "- machine: 1 x a processor, 2 cores",
        "**The learner is the bottleneck: rollout and teacher wait for it 46 % of an iteration; take a smaller student (roles share "
        "devices, so more workers do not help).**",
        "| rollout | 200 | 190 | 2.00 s | 2.10 s | 70 % |",
        "| rollout | 2 | 100 | 95 | 0.5 | 10 % | 10 % |",
        "| learner | 1 | 200 | 188 | 0.5 | 60 % | 56 % |",
        "| mixed | 200 | 2.00 s |",
        "| update | 3.80 s | 54.3 % |",
        "| learner: bare forward + backward / update | 0.9 | >= 0.85 | met |",
        "| publish_share: publish / iteration | 0.0357 | < 0.05 | met |",
        "| chunked_kl: bare products / chunked KL | 0.8 |  |  |",
        "| weights, one publish alone | 230 MB | 0.20 s | 1.15 GB/s |",
        "| a plain copy of as much | 230 MB | 20.0 ms | 11.5 GB/s |",
        "| teacher scores, each iteration | 3.4 MB |  |  |",
        "| rollout 1 | 1.2 GB |",
    ],
)
def test_a_line_of_the_markdown(text, line):
    assert line in text.splitlines()


def test_a_missed_goal_is_shown(text):
    assert "| mixed: rate / (1 / (1/student + 1/teacher)) | 0.9 | >= 0.95 | missed |" in text.splitlines()


def test_scores_out_of_sampling_are_part_of_the_rollout_role(tmp_path):
    result = measurements()
    without = {key: value for key, value in result.iterations[0].items() if not key.startswith("teacher/")}
    alone = {role: work for role, work in result.alone.items() if role != "teacher"}
    result = measurements(alone=alone, sharing=[["rollout", "learner"]], iterations=[without], memory={"rollout": [1]})
    save(tmp_path, result, ABOUT)
    lines = markdown(result, ABOUT).splitlines()
    assert "| rollout, with the teacher's scores | 200 | 190 | 2.00 s | 2.10 s | 70 % |" in lines
    assert "| rollouts with scores, each iteration | 50 kB |  |  |" in lines
    assert not any(line.startswith("| teacher |") or "teacher scores" in line for line in lines)
    assert result.efficiency() == pytest.approx((2.0 + 3.0) / 7.0)


def test_every_row_has_the_columns_of_its_table():
    for table in tables(measurements()):
        assert {len(row) for row in table.rows} == {len(table.columns)}, table.title
