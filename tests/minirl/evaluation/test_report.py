"""What an evaluation leaves: JSON with everything, tables that read, pictures of what there is."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from minirl.evaluation.figures import figures_of, rouge_scores
from minirl.evaluation.plots import draw_all
from minirl.evaluation.report import EvaluatedModel, EvaluationReport
from minirl.evaluation.samples import EvaluatedSamples
from tests.minirl.evaluation.evaluated_samples import judged, models, references

PICTURES = ["rouge_l.png", "rouge_l_by_length.png", "kl_by_position.png", "exposure_bias.png"]


def report(found) -> EvaluationReport:
    evaluated = {name: EvaluatedModel(f"runs/{name}", {"model.safetensors": "ab"}, 2.5, sets) for name, sets in found.items()}
    return EvaluationReport({"config": "c.yaml"}, {"temperature": 1.0}, {"test": {"source": "x", "sha256": "cd"}}, evaluated)


@pytest.fixture(scope="module")
def found():
    return models(("test", "other"), sft=0.4, distill=0.7)


def test_the_files(found, tmp_path):
    files = report(found).save(tmp_path)
    assert [file.name for file in files] == ["evaluation.json", "evaluation.md", *PICTURES]
    saved = json.loads(files[0].read_text())
    assert saved["models"]["sft"]["weights_sha256"] == {"model.safetensors": "ab"} and saved["data"]["test"]["sha256"] == "cd"
    kept = saved["models"]["distill"]["sets"]["other"]
    assert kept["rouge_l"] == found["distill"]["other"]["rouge_l"] and len(kept["calibration"]["bins"]) == 10
    for picture in files[2:]:
        height, width, _ = imread(picture).shape
        assert min(height, width) > 400


def test_the_tables_say_what_the_measures_do(found, tmp_path):
    text = report(found).markdown(PICTURES)
    first, described = (table for table in report(found).tables()[:2])
    rows = {row[0]: dict(zip(first.columns, row, strict=True)) for row in first.rows}
    measures = found["sft"]["test"]
    assert list(rows) == ["teacher", "sft", "distill"]
    assert rows["sft"]["Rouge-L"] == f"{measures['rouge_l']['mean']:.3g}"
    assert rows["sft"]["reverse KL"] == f"{measures['reverse_kl']['mean']:.3g}"
    assert sum("Rouge-L, " in column for column in first.columns) == 3
    assert any(column.startswith("ExAccErr(") for column in described.columns) and "| sft |" in text
    assert all(f"({name})" in text for name in PICTURES) and "| sft | 2.5 |" in text
    widths = {line.count("|") for line in text.split("## ")[1].splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_what_was_not_measured_has_no_column_and_no_picture(tmp_path):
    (tmp_path / "exposure_bias.png").write_bytes(b"of an earlier evaluation")
    wanted = references(12)
    one = judged(wanted, 0.5, seed=1, seeds=1)
    blocked = EvaluatedSamples(one.texts, one.rollouts, None, one.gold)
    found = {"sft": {"test": figures_of(blocked, wanted, rouge_scores(blocked, wanted), top_k=3)}}
    files = report(found).save(tmp_path)
    assert [file.name for file in files[2:]] == PICTURES[:2] and not (tmp_path / "exposure_bias.png").exists()
    (table, _), text = report(found).tables()[:2], files[1].read_text()
    assert "reverse KL" not in table.columns and "s.e." not in table.columns and "forward KL, gold" in table.columns
    assert "None" not in text and "nan" not in text


def test_very_short_responses_are_drawn_too(tmp_path):
    wanted = references(5)
    one = judged(wanted, 0.5, seed=1, longest=2)
    assert len(draw_all({"sft": {"test": figures_of(one, wanted, rouge_scores(one, wanted), top_k=3)}}, tmp_path)) == 4


def test_numbers_that_json_does_not_know_do_not_come_up(found):
    for sets in found.values():
        assert not any(word in json.dumps(sets) for word in ("NaN", "Infinity"))
    assert np.isfinite(found["sft"]["test"]["exposure_bias"]["drop"]["percent"][0])
