"""Files of an evaluation: JSON with every figure, readable tables, and plots of the figures that exist."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from minirl.evaluation.figures import figures_of, rouge_scores
from minirl.evaluation.plots import draw_all
from minirl.evaluation.report import EvaluatedModel, EvaluationReport
from minirl.evaluation.samples import EvaluatedSamples
from tests.minirl.evaluation.evaluated_samples import models, random_samples, references

PICTURES = ["rouge_l.png", "rouge_l_by_length.png", "kl_by_position.png", "exposure_bias.png"]


def report(figures) -> EvaluationReport:
    models = {name: EvaluatedModel(f"runs/{name}", {"model.safetensors": "ab"}, 2.5, sets) for name, sets in figures.items()}
    return EvaluationReport({"config": "c.yaml"}, {"temperature": 1.0}, {"test": {"source": "x", "sha256": "cd"}}, models)


@pytest.fixture(scope="module")
def figures_by_model():
    return models(("test", "other"), sft=0.4, distill=0.7)


def test_a_report_writes_json_markdown_and_plots(figures_by_model, tmp_path):
    files = report(figures_by_model).save(tmp_path)
    assert [file.name for file in files] == ["evaluation.json", "evaluation.md", *PICTURES]
    saved = json.loads(files[0].read_text())
    assert saved["models"]["sft"]["weights_sha256"] == {"model.safetensors": "ab"} and saved["data"]["test"]["sha256"] == "cd"
    saved_figures = saved["models"]["distill"]["sets"]["other"]
    assert saved_figures["rouge_l"] == figures_by_model["distill"]["other"]["rouge_l"] and len(saved_figures["calibration"]["bins"]) == 10
    for picture in files[2:]:
        height, width, _ = imread(picture).shape
        assert min(height, width) > 400


def test_the_tables_show_the_figures(figures_by_model, tmp_path):
    text = report(figures_by_model).markdown(PICTURES)
    first, described = (table for table in report(figures_by_model).tables()[:2])
    rows = {row[0]: dict(zip(first.columns, row, strict=True)) for row in first.rows}
    figures = figures_by_model["sft"]["test"]
    assert list(rows) == ["teacher", "sft", "distill"]
    assert rows["sft"]["Rouge-L"] == f"{figures['rouge_l']['mean']:.3g}"
    assert rows["sft"]["reverse KL"] == f"{figures['reverse_kl']['mean']:.3g}"
    assert sum("Rouge-L, " in column for column in first.columns) == 3
    assert any(column.startswith("ExAccErr(") for column in described.columns) and "| sft |" in text
    assert all(f"({name})" in text for name in PICTURES) and "| sft | 2.5 |" in text
    widths = {line.count("|") for line in text.split("## ")[1].splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_a_figure_that_was_not_measured_has_no_column_and_no_plot(tmp_path):
    (tmp_path / "exposure_bias.png").write_bytes(b"from an earlier evaluation")
    gold = references(12)
    samples = random_samples(gold, 0.5, seed=1, seeds=1)
    blocked = EvaluatedSamples(samples.texts, samples.rollouts, None, samples.on_gold)
    figures_by_model = {"sft": {"test": figures_of(blocked, gold, rouge_scores(blocked, gold), top_k=3)}}
    files = report(figures_by_model).save(tmp_path)
    assert [file.name for file in files[2:]] == PICTURES[:2] and not (tmp_path / "exposure_bias.png").exists()
    (table, _), text = report(figures_by_model).tables()[:2], files[1].read_text()
    assert "reverse KL" not in table.columns and "s.e." not in table.columns and "forward KL, gold" in table.columns
    assert "None" not in text and "nan" not in text


def test_very_short_responses_are_plotted(tmp_path):
    gold = references(5)
    samples = random_samples(gold, 0.5, seed=1, longest=2)
    assert len(draw_all({"sft": {"test": figures_of(samples, gold, rouge_scores(samples, gold), top_k=3)}}, tmp_path)) == 4


def test_figures_hold_no_nan_or_infinity(figures_by_model):
    for sets in figures_by_model.values():
        assert not any(word in json.dumps(sets) for word in ("NaN", "Infinity"))
    assert np.isfinite(figures_by_model["sft"]["test"]["exposure_bias"]["drop"]["percent"][0])
