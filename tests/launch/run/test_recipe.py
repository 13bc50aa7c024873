"""Whole runs with the real command, real Ray, vLLM and DeepSpeed: two rollout workers, two learner ranks, and teacher mixing.

One uninterrupted run is the reference. Other runs are stopped, interrupted, killed and made to diverge, and must end with the same bits.
"""

import hashlib
import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from minirl.config.data import DataConfig
from minirl.data.examples import load_data
from minirl.training import checkpoint
from tests.launch.conftest import NO_CLUSTER, VOCABULARY, newest
from tests.tiny import END_TOKEN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROWS = ["teacher", "student_init", "sft", "distill"]
COLUMNS = {
    "rouge_l", "rouge_l_standard_error", "reverse_kl", "reverse_kl_per_response", "forward_kl_gold", "mean_response_tokens", "truncated",
    "distinct_4",
}  # fmt: skip


def records(directory: Path, stage: str | None = None) -> list[dict]:
    """The lines of `metrics.jsonl` without the values that depend on the clock."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    all_records = [json.loads(line) for line in lines]
    clock_suffixes = ("per_second", "busy_seconds")
    timeless = [{k: v for k, v in r.items() if not k.startswith("time/") and not k.endswith(clock_suffixes)} for r in all_records]
    return [record for record in timeless if stage is None or record["stage"] == stage]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def assert_same_bits(directory: Path, reference_directory: Path) -> None:
    tensors, reference = weights(directory), weights(reference_directory)
    assert tensors.keys() == reference.keys()
    for name, tensor in tensors.items():
        difference = (tensor - reference[name]).abs().max().item()
        assert torch.equal(tensor, reference[name]), f"{name} differs by up to {difference}"


def digest(directory: Path) -> str:
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return hashlib.sha256(b"".join(str(file).encode() + file.read_bytes() for file in files)).hexdigest()


@pytest.fixture(scope="module")
def whole(experiment, start):
    """The directory of a run of all stages, never stopped. While it runs, a second command tries to use the same directory."""
    config = experiment.config("whole")
    command = start(config)
    command.wait_for((experiment.root / "whole" / ".lock").is_file)
    second = start(config)
    assert second.wait() == 2 and "another run (process" in second.text, second.text
    assert command.wait() == 0, command.text
    assert command.leftover_processes() == []
    return experiment.root / "whole"


@pytest.fixture(scope="module")
def fine_tuned(experiment, whole):
    """Config changes for a run of the distillation alone, from the same fine-tuned student."""
    distill = experiment.settings["stages"]["distill"]
    return {"student": {"model": str(whole / "sft" / "best")}, "stages": {"distill": distill}}


# --- what a run leaves ---


def test_the_summary_has_a_row_for_every_model(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert list(summary) == ROWS
    for name, row in summary.items():
        assert row.keys() >= COLUMNS, name
        assert all(math.isfinite(row[column]) for column in COLUMNS), name
        assert (row["prompts"], row["seeds"]) == (8, 2)
        assert 1 <= row["mean_response_tokens"] <= 12 and 0 <= row["truncated"] <= 1 and 0 <= row["rouge_l"] <= 100
        assert row["reverse_kl_per_response"] == pytest.approx(row["reverse_kl"] * row["mean_response_tokens"], abs=1e-6)


def test_the_teachers_kl_to_itself_is_0_and_distillation_reduces_the_students(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert abs(summary["teacher"]["reverse_kl"]) < 1e-4 and abs(summary["teacher"]["forward_kl_gold"]) < 1e-4
    assert summary["distill"]["reverse_kl"] < summary["sft"]["reverse_kl"]


def test_forward_kl_equals_that_of_the_saved_models_in_transformers(whole, experiment):
    settings = experiment.settings
    tokenizer = AutoTokenizer.from_pretrained(settings["teacher"]["model"])
    data = load_data(DataConfig(**settings["data"]), tokenizer, (END_TOKEN,))
    summary = json.loads((whole / "summary.json").read_text())
    teacher = AutoModelForCausalLM.from_pretrained(settings["teacher"]["model"]).eval()
    for name, directory in {"sft": whole / "sft" / "best", "distill": whole / "distill" / "best"}.items():
        student, total, positions = AutoModelForCausalLM.from_pretrained(directory).eval(), 0.0, 0
        for example in data.test[:8]:
            tokens = torch.from_numpy(example.sequence.tokens)[None]
            predicting = torch.from_numpy(example.sequence.is_target)[1:]
            with torch.no_grad():
                p, q = (model(tokens).logits[0, :-1][predicting].double().log_softmax(-1) for model in (teacher, student))
            total, positions = total + (p.exp() * (p - q)).sum().item(), positions + int(predicting.sum())
        assert summary[name]["forward_kl_gold"] == pytest.approx(total / positions, rel=1e-4)


def test_samples_are_written_for_every_row(whole):
    for name in ROWS:
        samples = [json.loads(line) for line in (whole / "evaluate" / "test" / f"{name}.samples.jsonl").read_text().splitlines()]
        assert len(samples) == 8 and all(sample["prompt"] and sample["references"] for sample in samples)
        assert any(sample["response"] for sample in samples)


def test_every_student_is_a_hugging_face_directory(whole):
    for directory in (whole / "sft" / "best", whole / "distill" / "best", whole / "distill" / "last"):
        model = AutoModelForCausalLM.from_pretrained(directory)
        assert model.get_output_embeddings().weight.shape[0] == VOCABULARY
        assert AutoTokenizer.from_pretrained(directory).chat_template
    start, tuned, last = (weights(whole / stage) for stage in ("../student", "sft/best", "distill/last"))
    assert all(not torch.equal(start[name], tuned[name]) and not torch.equal(tuned[name], last[name]) for name in start)


def test_metrics_have_a_record_for_every_update_and_iteration(whole):
    assert [r["update"] for r in records(whole, "sft")] == [0, 1, 2, 3]
    distill = records(whole, "distill")
    trained, validated = ([r for r in distill if (key in r)] for key in ("loss/total", "eval/rouge_l"))
    assert [r["iteration"] for r in trained] == [r["iteration"] for r in validated] == [0, 1, 2, 3]
    assert [r["learner/updates"] for r in trained] == [2, 4, 6, 8] and [r["weight_version"] for r in trained] == [2, 3, 4, 5]
    for record in trained:
        assert record["rollout/reverse_kl"] > 0 and record["learner/teacher_gap"] < 1e-5 and record["rollout/behavior_gap"] < 1e-4
        assert {"loss/policy_gradient", "loss/single_step", "loss/pretrain"} <= record.keys()


def test_the_best_student_is_that_of_the_highest_validation(whole):
    validations = [r for r in records(whole, "distill") if "eval/rouge_l" in r]
    assert all(0 < r["eval/reverse_kl"] < 20 for r in validations)
    _, state = checkpoint.latest(whole / "distill" / "checkpoints")
    best = max(validations, key=lambda r: (r["eval/rouge_l"], -r["eval/reverse_kl"]))
    assert state["driver"]["best_iteration"] == best["iteration"] + 1
    losses = [(r["eval/validation_loss"], r["update"] + 1) for r in records(whole, "sft") if "eval/validation_loss" in r]
    _, state = checkpoint.latest(whole / "sft" / "checkpoints")
    assert len(losses) > 1 and state["driver"]["best_update"] == min(losses)[1]


# --- the teacher's scores ---


def test_scores_of_the_teacher_group_train_the_same_student_as_those_out_of_sampling(whole, fine_tuned, experiment, start):
    """The whole run takes them out of sampling, from both of its rollout workers, and starts no teacher group before the evaluation."""
    config, directory = experiment.config("scored_by_group", **fine_tuned), experiment.root / "scored_by_group"
    command = start(config, "teacher.scores=group")
    assert command.wait() == 0, command.text
    assert "starting the rollout, teacher and learner groups" in command.text
    by_group, from_sampling = records(directory, "distill"), records(whole, "distill")
    assert [r["teacher/payload_bytes"] > 0 for r in by_group if "loss/total" in r] == [True] * 4
    assert not any(key.startswith("teacher/") for r in from_sampling for key in r)
    for ours, group in zip(from_sampling, by_group, strict=True):
        compared = [key for key in ours if key.startswith(("loss/", "eval/", "rollout/reverse_kl", "rollout/mean"))]
        assert compared and {key: ours[key] for key in compared} == pytest.approx({key: group[key] for key in compared}, rel=1e-5)
    tensors, expected = weights(whole / "distill" / "last"), weights(directory / "distill" / "last")
    moved = {name: (expected[name] - tensor).abs().max() for name, tensor in weights(whole / "sft" / "best").items()}
    for name, tensor in tensors.items():
        assert (tensor - expected[name]).abs().max() <= 1e-3 * moved[name], name


# --- resuming ---


def test_started_again_a_finished_run_has_nothing_to_do(whole, start):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.name.endswith((".safetensors", ".pt", "metrics.jsonl"))}
    summary = (whole / "summary.json").read_text()
    command = start(whole.with_suffix(".yaml"), cluster=NO_CLUSTER)
    assert command.wait() == 0, command.text
    assert "starting" not in command.text
    assert before and all(file.stat().st_mtime_ns == stamp for file, stamp in before.items())
    assert (whole / "summary.json").read_text() == summary


def test_a_stopped_and_extended_run_ends_with_the_same_bits(whole, experiment, start):
    config, directory = experiment.config("parts"), experiment.root / "parts"
    for overrides in (
        ["stages.sft.max_updates=2", "stages.distill=null", "stages.evaluate=null"],
        ["stages.distill.iterations=2", "stages.evaluate=null"],
        ["stages.evaluate=null"],
    ):
        command = start(config, *overrides)
        assert command.wait() == 0, command.text
    assert_same_bits(directory / "sft" / "best", whole / "sft" / "best")
    assert_same_bits(directory / "distill" / "last", whole / "distill" / "last")
    assert_same_bits(directory / "distill" / "best", whole / "distill" / "best")
    assert records(directory) == records(whole)


def test_an_interrupted_killed_and_diverged_run_ends_with_the_same_bits(whole, fine_tuned, experiment, start):
    config, directory = experiment.config("killed", **fine_tuned), experiment.root / "killed"

    interrupted = start(config)
    interrupted.wait_for(lambda: newest(directory) >= 1)
    interrupted.signal(signal.SIGINT)
    assert interrupted.wait() == 130, interrupted.text
    assert interrupted.text.endswith("interrupted; start the same command again to resume\n")
    assert interrupted.leftover_processes() == []
    reached = newest(directory)

    killed = start(config)
    killed.wait_for(lambda: newest(directory) > reached)
    killed.signal(signal.SIGKILL)
    killed.wait()
    assert killed.leftover_processes() == []
    reached = newest(directory)
    assert 2 <= reached < 4, "the kill came too late to test a resume"

    before = digest(checkpoint.complete(directory / "distill" / "checkpoints")[-1])
    diverged = start(config, "stages.distill.learning_rate=1e30")
    assert diverged.wait() == 1, diverged.text
    assert f"stopped: the loss of iteration {reached}, update {2 * reached + 1}, is not finite" in diverged.text
    assert "Traceback" not in diverged.text and diverged.leftover_processes() == []
    assert digest(checkpoint.complete(directory / "distill" / "checkpoints")[-1]) == before

    last = start(config)
    assert last.wait() == 0, last.text
    assert_same_bits(directory / "distill" / "last", whole / "distill" / "last")
    assert_same_bits(directory / "distill" / "best", whole / "distill" / "best")
    assert records(directory, "distill") == records(whole, "distill")
    assert [file.name for file in (directory / "distill" / "checkpoints").iterdir()] == ["00000004"]


def test_distillation_does_not_resume_with_a_student_that_has_changed(whole, experiment, start):
    changed_run = experiment.root / "changed"
    shutil.copytree(whole, changed_run)
    with (changed_run / "sft" / "best" / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x01\x02\x03\x04")
    command = start(whole.with_suffix(".yaml"), f"directory={changed_run}", "stages.distill.iterations=5", cluster=NO_CLUSTER)
    assert command.wait() == 2, command.text
    assert "was started from other weights or data than it would start from now" in command.text
    assert command.leftover_processes() == []


def test_a_checkpoint_of_another_layout_is_refused(whole, start):
    command = start(whole.with_suffix(".yaml"), "learner.workers=1", "stages.distill.iterations=5", cluster=NO_CLUSTER)
    assert command.wait() == 2
    assert "error: the checkpoint was written with learner.workers = 2; set that to resume" in command.text
    assert command.leftover_processes() == []
