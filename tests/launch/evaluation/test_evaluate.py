"""The command `minirl evaluate` on two architectures and two sets, checked against transformers."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minirl.config.data import DataConfig
from minirl.data.examples import load_data
from minirl.evaluation.agreement import greedy_tokens
from tests.launch.conftest import VOCABULARY
from tests.tiny import END_TOKEN, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROMPTS, SEEDS = 8, [1, 2]
MODELS = ("teacher", "student", "deeper")


@pytest.fixture(scope="module")
def paths(experiment):
    """The experiment's student, and one with another layer, for which new engines must start."""
    deeper = tiny_model(experiment.root / "deeper", "gpt2", vocab=VOCABULARY, layers=3, seed=5)
    return {"teacher": experiment.settings["teacher"]["model"], "student": experiment.settings["student"]["model"], "deeper": deeper}


@pytest.fixture(scope="module")
def unseen(experiment):
    file = experiment.root / "unseen.jsonl"
    rows = [{"prompt": f"t{9 + i} t8", "completion": " ".join(["t7"] * (1 + 2 * i))} for i in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def config(experiment, unseen):
    sets = {"test": {"prompts": PROMPTS}, "unseen": {"source": str(unseen), "min_gold_words": 3}}
    evaluate = {"seeds": SEEDS, "sets": sets, "exposure_bias": True, "top_k": 5}
    alone = {role: experiment.settings[role] | {"workers": 1} for role in ("rollout", "learner")}
    return experiment.config("evaluated", stages={"evaluate": evaluate}, deterministic=False, **alone)


@pytest.fixture(scope="module")
def model_options(paths):
    return [f"--model={name}={paths[name]}" for name in MODELS[1:]]


@pytest.fixture(scope="module")
def evaluation(experiment, config, model_options, start):
    command = start(config, *model_options, verb="evaluate")
    assert command.wait() == 0, command.text
    assert command.leftover_processes() == [] and "rev. KL" in command.text and "alike" in command.text
    return experiment.root / "evaluated" / "evaluate"


@pytest.fixture(scope="module")
def report(evaluation):
    return json.loads((evaluation / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def networks(paths):
    return {name: AutoModelForCausalLM.from_pretrained(path).eval() for name, path in paths.items()}


@pytest.fixture(scope="module")
def examples(experiment):
    settings = experiment.settings
    tokenizer = AutoTokenizer.from_pretrained(settings["teacher"]["model"])
    return load_data(DataConfig(**settings["data"]), tokenizer, (END_TOKEN,)).test[:PROMPTS]


@torch.no_grad()
def rows_of(network, prompt: np.ndarray, response: np.ndarray) -> torch.Tensor:
    """Log-probs at each response token: float64 [T, V]."""
    tokens = torch.from_numpy(np.concatenate([prompt, response]))[None]
    return network(tokens).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)


def responses(evaluation, model: str) -> list[list[np.ndarray]]:
    """The stored responses: [seeds][prompts]."""
    arrays = np.load(evaluation / "test" / f"{model}.npz")
    rows = iter(np.split(arrays["tokens"].astype(np.int64), arrays["lengths"].cumsum()[:-1]))
    return [[next(rows) for _ in range(PROMPTS)] for _ in SEEDS]


def forward_kl(networks, model: str, examples, sampled) -> list[list[np.ndarray]]:
    def divergence(example, response):
        q, p = (rows_of(networks[name], example.prompt.tokens, response) for name in (model, "teacher"))
        return (p.exp() * (p - q)).sum(1).numpy()

    return [[divergence(example, response) for example, response in zip(examples, one_seed, strict=True)] for one_seed in sampled]


def test_every_model_has_every_figure_on_every_set(report):
    assert tuple(report["models"]) == MODELS and list(report["data"]) == ["test", "unseen", "corpus"]
    assert (report["data"]["test"]["prompts"], report["data"]["unseen"]["prompts"]) == (PROMPTS, 8)
    assert report["decoding"]["seeds"] == SEEDS and report["decoding"]["no_repeat_ngram"] == 0
    for name, model in report["models"].items():
        assert math.isfinite(model["lm_loss_corpus"]) and len(model["weights_sha256"]["model.safetensors"]) == 64
        for figures in model["sets"].values():
            assert [key for key, value in figures.items() if value is None] == (["exposure_bias"] if name == "teacher" else [])
    teacher = report["models"]["teacher"]["sets"]["test"]
    assert abs(teacher["reverse_kl"]["mean"]) < 1e-5 and teacher["top_k_overlap"]["gold"] == 1.0


@pytest.mark.parametrize("model", MODELS[1:])
def test_kl_and_exposure_bias_equal_those_from_transformers_on_the_same_responses(evaluation, report, networks, examples, model):
    figures = report["models"][model]["sets"]["test"]
    on_samples = forward_kl(networks, model, examples, responses(evaluation, model))
    on_teacher = forward_kl(networks, model, examples, responses(evaluation, "teacher"))
    flat = [row for one_seed in on_samples for row in one_seed]
    first = figures["kl_by_position"]["forward"]
    assert first[0] == pytest.approx(np.mean([row[0] for row in flat]), rel=1e-4)
    assert figures["kl_by_position"]["alive"] == [sum(len(row) >= t for row in flat) for t in range(1, len(first) + 1)]
    accumulated = [sum(row[:4].sum() for one_seed in rows for row in one_seed) for rows in (on_samples, on_teacher)]
    zero = figures["exposure_bias"]["zero"]["percent"]
    assert zero[0] == pytest.approx(0.0, abs=1e-3)
    assert zero[3] == pytest.approx(100 * (accumulated[0] - accumulated[1]) / accumulated[1], rel=1e-3, abs=1e-2)


def test_gold_figures_equal_those_from_transformers_on_the_records(report, networks, examples):
    for name in MODELS[1:]:
        figures, losses, correct = report["models"][name]["sets"]["test"], [], []
        for example in examples:
            rows, gold = rows_of(networks[name], example.prompt.tokens, example.prompt.gold), torch.from_numpy(example.prompt.gold)
            losses += (-rows.gather(1, gold[:, None])[:, 0]).tolist()
            correct += (rows.argmax(1) == gold).tolist()
        assert figures["lm_loss_gold"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert figures["calibration"]["accuracy"] == pytest.approx(np.mean(correct))


@torch.no_grad()
def test_greedy_answers_are_those_of_transformers_and_are_compared_with_the_teachers(evaluation, report, networks, examples):
    answers = {}
    for name in MODELS:
        answers[name] = greedy_tokens(np.load(evaluation / "test" / f"{name}.npz"))
        for example, answer in zip(examples, answers[name], strict=True):
            rows = rows_of(networks[name], example.prompt.tokens, answer)
            assert (rows.max(1).values - rows.gather(1, torch.from_numpy(answer)[:, None])[:, 0]).max() < 1e-4, name
            assert (answer[-1] == END_TOKEN) or len(answer) == 12
    assert any(not np.array_equal(*pair) for pair in zip(answers["student"], answers["teacher"], strict=True))
    for name in MODELS:
        alike = report["models"][name]["sets"]["test"]["teacher_agreement"]
        same_first = np.mean([a[0] == b[0] for a, b in zip(answers[name], answers["teacher"], strict=True)])
        assert alike["identical_start"][0] == pytest.approx(same_first)
        assert 0 <= alike["exact_match"] <= alike["identical_start"][-1] <= 1 if name != "teacher" else alike["exact_match"] == 1
    row = json.loads((evaluation / "student.json").read_text())["row"]
    assert row["teacher_rouge_l"] == report["models"]["student"]["sets"]["test"]["teacher_agreement"]["rouge_l"]["mean"]


def test_the_directory_holds_tables_plots_and_samples(evaluation):
    text = (evaluation / "evaluation.md").read_text()
    assert all(f"| {model} |" in text for model in MODELS) and "## unseen: against references and teacher" in text
    assert sorted(file.name for file in evaluation.glob("*.png")) == [
        "exposure_bias.png", "kl_by_position.png", "rouge_l.png", "rouge_l_by_length.png",
    ]  # fmt: skip
    samples = [json.loads(line) for line in (evaluation / "unseen" / "deeper.samples.jsonl").read_text().splitlines()]
    assert len(samples) == 8 and set(samples[0]) == {"question", "prompt", "response", "references"}


def test_only_a_missing_model_is_measured_again(evaluation, report, config, model_options, start):
    """The stored samples of the teacher are reused, so the figures repeat, up to the last bits that batching changes."""
    (evaluation / "deeper.json").unlink()
    written_at = (evaluation / "student.json").stat().st_mtime_ns
    command = start(config, *model_options, verb="evaluate")
    assert command.wait() == 0, command.text
    assert "evaluate: deeper" in command.text and "evaluate: student" not in command.text and "evaluate: teacher" not in command.text
    assert (evaluation / "student.json").stat().st_mtime_ns == written_at
    again = json.loads((evaluation / "evaluation.json").read_text())["models"]["deeper"]["sets"]["test"]
    before = report["models"]["deeper"]["sets"]["test"]
    assert again["exposure_bias"]["zero"]["percent"] == pytest.approx(before["exposure_bias"]["zero"]["percent"], rel=1e-3, abs=1e-2)
    assert again["rouge_l"] == before["rouge_l"]


def test_blocked_ngrams_do_not_repeat_and_no_kl_is_reported(experiment, config, model_options, examples, start):
    out = experiment.root / "blocked"
    changes = ["stages.evaluate.no_repeat_ngram=1", "stages.evaluate.exposure_bias=false", "stages.evaluate.seeds=[1]", f"--out={out}"]
    command = start(config, *model_options[:1], *changes, verb="evaluate")
    assert command.wait() == 0, command.text
    arrays = np.load(out / "test" / "student.npz")
    for example, response in zip(examples, np.split(arrays["tokens"], arrays["lengths"].cumsum()[:-1]), strict=True):
        assert len(set(response.tolist())) == len(response) and not set(response.tolist()) & set(example.prompt.tokens.tolist())
    row = json.loads((out / "student.json").read_text())
    assert row["row"]["reverse_kl"] is None and row["row"]["rouge_l"] is not None and row["sets"]["test"]["calibration"]["ece"] > 0
    assert not (out / "kl_by_position.png").exists()


def test_refusals(config, start, tmp_path):
    for arguments, message in {
        (): "evaluate needs a model: give --model DIR",
        (f"--model={tmp_path}",): "is a directory but holds no config.json",
    }.items():
        command = start(config, *arguments, verb="evaluate")
        assert command.wait() == 2 and message in command.text, command.text
