"""The steps of a run with one family in one process: rollout engine, teacher engine and learner, without Ray.

    python -m tests.families.steps FAMILY RESULT.json

writes {"steps": {step: "ok" or a sentence}, "gaps": {step: nats}}. Engine, learner and transformers must agree on the log-prob of every
token of sequences of up to 220 tokens, longer than the sliding windows and than the widest micro-batch of the eager kernel.
"""

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors.config import LearnerConfig, LearnerSetup, RolloutConfig, TeacherConfig
from actors.engine.engine import check_engine_class, check_head_size
from actors.weights.packed import checksum
from actors.workers.rendezvous import join_process_group
from minirl.config.objective import ObjectiveConfig
from minirl.config.stages import SftConfig
from minirl.errors import InputError, RunError
from minirl.model.loading import check_supported
from minirl.model.microbatch import make_microbatch
from minirl.model.output_head import read_head
from minirl.model.teacher_ensemble import EnsembleStates, TeacherEnsemble
from minirl.model.weight_accounting import check_weights
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.training.update import LossDivisors, UpdateStep
from minirl.types import EnsembleScores, Rollout, SamplingRequest, TeacherScores, TokenSequence, numpy_from_tensor, tensor_from_numpy
from tests.deadlines import deadline
from tests.families.models import FAMILIES, TEACHER, VOCABULARY, family_model
from tests.tiny import END_TOKEN

TOLERANCE = 1e-4  # nats, float32
SHARE, MAX_LENGTH = 0.3, 256
PROMPTS, RESPONSE = (9, 60, 200), 20
STUDENT_STEPS = ("accepted", "sft", "sample", "distil", "publish", "resume", "export", "bfloat16")
TEACHER_STEPS = ("accepted as teacher", "scores", "head", "ensemble", "mixture")


class Failed(Exception):
    """A step that ran but gave a wrong result."""


class Steps:
    """Runs steps in order and records each. A step is skipped once one that it needs has failed."""

    def __init__(self):
        self.results: dict[str, str] = {}
        self.gaps: dict[str, float] = {}

    def run(self, name: str, step: Callable[[], Any], needs: tuple[str, ...] = ()) -> Any:
        if any(self.results.get(need) != "ok" for need in needs):
            self.results[name] = "not reached"
            return None
        try:
            value = step()
        except Exception as error:
            traceback.print_exc()
            kind = "" if isinstance(error, InputError | RunError | Failed) else f"{type(error).__name__}: "
            self.results[name] = kind + " ".join(str(error).split())[:300]
            return None
        self.results[name] = "ok"
        return value

    def require_close(self, step: str, gap: float) -> None:
        self.gaps[step] = max(gap, self.gaps.get(step, 0.0))
        if not gap <= TOLERANCE:
            raise Failed(f"log-probs are {gap:.2g} nats off")


def accept(models: dict[str, str]) -> None:
    """The checks of `minirl run`. models: config key -> directory."""
    for key, directory in models.items():
        check_engine_class(check_supported(directory, key, learns=key == "student.model"), key)
        check_head_size(directory, "cpu")
        check_weights(directory, key)


@torch.no_grad()
def rows(model: PreTrainedModel, tokens: np.ndarray) -> torch.Tensor:
    """transformers' log-probs of every next token, float64 [n, vocabulary]."""
    return model(torch.from_numpy(tokens)[None]).logits[0].double().log_softmax(-1)


def targets_of(sequence: TokenSequence, logprobs: torch.Tensor) -> torch.Tensor:
    positions = np.flatnonzero(sequence.is_target)
    return logprobs[positions - 1, sequence.tokens[positions]]


def gap(actual, expected: torch.Tensor) -> float:
    actual = torch.as_tensor(actual).double()
    return float("nan") if actual.isnan().any() else (actual - expected).abs().max().item()


def reference(directory: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def requests() -> list[SamplingRequest]:
    draw = np.random.default_rng(0)
    return [SamplingRequest(draw.integers(3, VOCABULARY, size=n), i, 0, i) for i, n in enumerate(PROMPTS)]


def sequences() -> list[TokenSequence]:
    draw = np.random.default_rng(1)
    return [TokenSequence(draw.integers(3, VOCABULARY, n), np.arange(n) > n // 3) for n in (220, 70, 13)]


def rollout_gap(rollouts: list[Rollout], student: PreTrainedModel, teacher: PreTrainedModel | None, share: float) -> float:
    gaps = []
    for rollout in rollouts:
        mixed = rows(student, rollout.sequence.tokens)
        if share:
            mixed = ((1 - share) * mixed.exp() + share * rows(teacher, rollout.sequence.tokens).exp()).log()
        gaps.append(gap(rollout.behavior_logprobs, targets_of(rollout.sequence, mixed)))
    return max(gaps)


class Engines:
    """A process for all engines of a family: vLLM's transformers backend changes transformers' classes in its process."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self._connection, end = context.Pipe()
        context.Process(target=_serve_engines, args=(end,), daemon=True).start()
        end.close()

    def call(self, *request) -> Any:
        self._connection.send(request)
        value, error = self._connection.recv()
        if error is not None:
            raise error
        return value

    def rollout(self, student: str, teacher: str | None, dtype: str = "float32") -> "Engine":
        settings = {"config": RolloutConfig(dtype=dtype, kv_cache_gib=0.125), "teacher": teacher, "end_tokens": (END_TOKEN,)}
        return Engine(self, self.call("open", "actors.workers.rollout", "RolloutWorker", {"model": student} | settings))

    def teacher(self, directory: str, dtype: str = "float32") -> "Engine":
        config = TeacherConfig(model=directory, dtype=dtype, kv_cache_gib=0.125, micro_batch_tokens=512, check_every=1)
        settings = {"model": directory, "config": config, "temperature": 1.0}
        return Engine(self, self.call("open", "actors.workers.teacher", "TeacherWorker", settings))


class Engine:
    """A rollout or teacher worker in the engines' process; it has the worker's methods."""

    def __init__(self, engines: Engines, index: int):
        self._engines, self._index = engines, index

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *arguments, **named: self._engines.call("call", self._index, method, arguments, named)


def _serve_engines(connection) -> None:
    workers = []
    while True:
        try:
            kind, *request = connection.recv()
        except EOFError:
            os._exit(0)  # vLLM's threads would hold the process
        try:
            value, error = _answer(workers, kind, request), None
        except Exception as problem:
            traceback.print_exc()
            known = isinstance(problem, InputError | RunError)
            value, error = None, type(problem)(str(problem)) if known else RuntimeError(f"{type(problem).__name__}: {problem}")
        connection.send((value, error))


def _answer(workers: list, kind: str, request: list) -> Any:
    if kind == "open":
        module, name, settings = request
        common = {"device": "cpu", "threads": 1, "max_model_len": MAX_LENGTH, "shared_vocabulary": VOCABULARY}
        workers.append(getattr(importlib.import_module(module), name)(**settings, **common))
        return len(workers) - 1
    index, method, arguments, named = request
    return getattr(workers[index], method)(*arguments, **named)


def open_learner(student: str, teacher: str | None, dtype: str = "float32"):
    from actors.workers.learner import Learner

    config = LearnerConfig(dtype=dtype, optimizer="sgd", checksum_tolerance=TOLERANCE if dtype == "float32" else None)
    setup = LearnerSetup(
        model=student, teacher=teacher, vocabulary=VOCABULARY, config=config, device="cpu", threads=1, seed=0,
        training=SftConfig(learning_rate=0.3, max_grad_norm=1.0), objective=ObjectiveConfig() if teacher else None,
        teacher_dtype=dtype, behavior_dtype=dtype,
    )  # fmt: skip
    return Learner(setup)


def publish(learner, worker, version: int, dtype: str = "float32") -> None:
    worker.begin_weights()
    for bucket in learner.packed_weights(dtype):
        worker.load_bucket(bucket, checksum(bucket))
    worker.finish_weights(version)


def sample(worker, share: float, version: int | None) -> list[Rollout]:
    return worker.sample(requests(), teacher_share=share, max_response_tokens=RESPONSE, weight_version=version)


def distil_once(learner, worker, scorer, version: int | None) -> None:
    """An on-policy update. The learner checks that the engine sampled with its weights and that it rebuilds the teacher's scores."""
    rollouts = sample(worker, SHARE, version)
    scores = scorer.score([rollout.sequence for rollout in rollouts])
    divisors = LossDivisors(sum(len(rollout.response_tokens) for rollout in rollouts))
    step = UpdateStep(0, 0, 0.3, divisors, check_behavior=True, teacher_share=SHARE)
    learner.update(step, [[OnPolicyItem(*pair) for pair in zip(rollouts, scores, strict=True)]], [])


@torch.no_grad()
def learner_logprobs(learner, sequence: TokenSequence) -> torch.Tensor:
    learner.engine.eval()
    statistics = learner.engine(make_microbatch([sequence]))
    learner.engine.train()
    return statistics.student_logprobs


def student_steps(steps: Steps, engines: Engines, family: str, root: Path) -> None:
    """The family as student, with a larger teacher of the same family."""
    student, teacher = family_model(root / "student", family), family_model(root / "teacher", family, TEACHER, seed=1)
    network, teacher_network = reference(student), reference(teacher)
    steps.run("accepted", lambda: accept({"student.model": student, "teacher.model": teacher}))

    def sft():
        learner = open_learner(student, None)
        for sequence in sequences():
            steps.require_close("sft", gap(learner_logprobs(learner, sequence), targets_of(sequence, rows(network, sequence.tokens))))
        items = [SupervisedItem(sequence) for sequence in sequences()]
        step = UpdateStep(0, 0, 0.3, LossDivisors(supervised=sum(s.targets for s in sequences())))
        losses = [learner.update(step, [], [items])["supervised"] for _ in range(3)]
        if not losses[2] < losses[0]:
            raise Failed(f"the loss does not fall: {losses}")

    def open_engines():
        worker, scorer = engines.rollout(student, teacher), engines.teacher(teacher)
        steps.require_close("sample", rollout_gap(sample(worker, SHARE, None), network, teacher_network, SHARE))
        steps.require_close("sample", rollout_gap(sample(worker, 0.0, None), network, None, 0.0))
        return worker, scorer

    def distil():
        learner = open_learner(student, teacher)
        distil_once(learner, worker, scorer, version=None)
        return learner

    def publish_and_sample():
        publish(learner, worker, 1)
        moved = reference(student)
        weights = {name: tensor.clone() for bucket in learner.packed_weights("float32") for name, tensor in bucket.tensors()}
        unknown = moved.load_state_dict(weights, strict=False).unexpected_keys  # a tied head has no entry of its own
        if unknown:
            raise Failed(f"{unknown} are no names of transformers")
        before = rollout_gap(sample(worker, 0.0, 1), network, None, 0.0)
        if before < 10 * TOLERANCE:
            raise Failed(f"the update moved no log-prob by more than {before:.2g} nats")
        steps.require_close("publish", rollout_gap(sample(worker, 0.0, 1), moved, None, 0.0))
        steps.require_close("publish", rollout_gap(sample(worker, SHARE, 1), moved, teacher_network, SHARE))
        for sequence in sequences():
            steps.require_close("publish", gap(learner_logprobs(learner, sequence), targets_of(sequence, rows(moved, sequence.tokens))))
        return moved

    def resume():
        (root / "checkpoint").mkdir()
        learner.save(str(root / "checkpoint"))
        again = open_learner(student, teacher)
        again.load(str(root / "checkpoint"))
        for sequence in sequences():
            steps.require_close("resume", gap(learner_logprobs(again, sequence), targets_of(sequence, rows(moved, sequence.tokens))))

    def export():
        learner.export(student, str(root / "export"))
        exported = reference(str(root / "export"))
        for sequence in sequences():
            expected = targets_of(sequence, rows(moved, sequence.tokens))
            steps.require_close("export", gap(targets_of(sequence, rows(exported, sequence.tokens)), expected))
        served = engines.rollout(str(root / "export"), None)
        steps.require_close("export", rollout_gap(sample(served, 0.0, None), moved, None, 0.0))

    def in_bfloat16():
        """In bfloat16: two updates with a publish between them, under the learner's own tolerances."""
        narrow = engines.rollout(student, teacher, "bfloat16"), engines.teacher(teacher, "bfloat16")
        narrow_learner = open_learner(student, teacher, "bfloat16")
        distil_once(narrow_learner, *narrow, version=None)
        publish(narrow_learner, narrow[0], 1, "bfloat16")
        distil_once(narrow_learner, *narrow, version=1)

    worker, scorer = steps.run("sample", open_engines, ("accepted",)) or (None, None)
    steps.run("sft", sft, ("accepted",))
    learner = steps.run("distil", distil, ("sample",))
    moved = steps.run("publish", publish_and_sample, ("distil",))
    steps.run("resume", resume, ("publish",))
    steps.run("export", export, ("publish",))
    steps.run("bfloat16", in_bfloat16, ("accepted",))


def teacher_steps(steps: Steps, engines: Engines, family: str, root: Path) -> None:
    """The family as teacher: of itself, in an ensemble with a Llama teacher, and in the rollout engine of a Llama student."""
    teacher = family_model(root / "as_teacher", family, TEACHER, seed=1)
    other, student = family_model(root / "llama_teacher", "llama", TEACHER, seed=2), family_model(root / "llama", "llama")
    network, other_network = reference(teacher), reference(other)
    steps.run("accepted as teacher", lambda: accept({"teacher.model": teacher}))

    def score() -> list[TeacherScores]:
        scores = engines.teacher(teacher).score(sequences())
        for sequence, score in zip(sequences(), scores, strict=True):
            steps.require_close("scores", gap(score.logprobs, targets_of(sequence, rows(network, sequence.tokens))))
        return scores

    def read() -> None:
        head = read_head(teacher, VOCABULARY)
        for sequence, score in zip(sequences(), scores, strict=True):
            logprobs = head.logits(tensor_from_numpy(score.hidden)).log_softmax(-1)
            expected = rows(network, sequence.tokens)[np.flatnonzero(sequence.is_target) - 1]
            steps.require_close("head", gap(logprobs, expected))

    def ensemble() -> None:
        from minirl.model.buffers import BufferPool

        heads = tuple(read_head(path, VOCABULARY) for path in (teacher, other))
        for sequence, score in zip(sequences(), scores, strict=True):
            positions = np.flatnonzero(sequence.is_target)
            with torch.no_grad():
                hidden = other_network.base_model(torch.from_numpy(sequence.tokens)[None]).last_hidden_state[0, positions - 1]
            second = TeacherScores(score.logprobs, score.log_normalizers, numpy_from_tensor(hidden))
            states = EnsembleStates.from_scores([EnsembleScores((score, second))], "cpu")
            average = torch.empty(len(positions), VOCABULARY)
            targets = torch.from_numpy(sequence.tokens[positions])
            TeacherEnsemble(heads, (1.0, 3.0)).logprobs_into(average, states, targets, 1.0, BufferPool())
            each = [rows(model, sequence.tokens)[positions - 1].exp() for model in (network, other_network)]
            steps.require_close("ensemble", gap(average, (0.25 * each[0] + 0.75 * each[1]).log()))

    def mixture() -> None:
        worker = engines.rollout(student, teacher)
        steps.require_close("mixture", rollout_gap(sample(worker, SHARE, None), reference(student), network, SHARE))

    scores = steps.run("scores", score, ("accepted as teacher",))
    steps.run("head", read, ("scores",))
    steps.run("ensemble", ensemble, ("head",))
    steps.run("mixture", mixture, ("accepted as teacher",))


def run_family(family: str) -> dict[str, dict]:
    """All steps of a family. Call it in a process of its own, because it starts torch.distributed and silences warnings."""
    warnings.simplefilter("ignore")
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    join_process_group(store, "127.0.0.1", store.port, rank=0, workers=1, device="cpu", timeout_s=deadline(6))
    steps, engines = Steps(), Engines()
    with tempfile.TemporaryDirectory() as root:
        if FAMILIES[family].student:
            student_steps(steps, engines, family, Path(root))
        teacher_steps(steps, engines, family, Path(root))
    order = [step for step in (*STUDENT_STEPS, *TEACHER_STEPS) if step in steps.results]
    return {"steps": {step: steps.results[step] for step in order}, "gaps": steps.gaps}


if __name__ == "__main__":
    result = run_family(sys.argv[1])
    Path(sys.argv[2]).write_text(json.dumps(result, indent=1))
    sys.stdout.flush()
    os._exit(0)  # vLLM's threads would hold the process
