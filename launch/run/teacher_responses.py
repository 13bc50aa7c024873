"""The data set of the stage `seqkd`: the teacher's responses to the training prompts, with their provenance."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from actors.groups.rollout_group import RolloutGroup
from actors.object_batches import split_into_batches
from launch.groups import Groups
from launch.observer import Observer
from launch.prepare import PreparedRun
from minirl.config.stages import SeqkdConfig
from minirl.data.examples import Example
from minirl.files import drop_incomplete_line, read_json_lines, write_json
from minirl.model.loading import fingerprint
from minirl.seeds import derive_seed
from minirl.training.on_policy_loop import sampling_requests
from minirl.types import SamplingRequest, TokenSequence

RESPONSES_PER_APPEND = 512  # a kill loses at most so many


class TeacherResponses:
    """Two files in the stage's directory: `responses.jsonl` has one line per response with its token ids, `responses.json` its provenance.

    The prompts that keep their gold response (`gold_share`) are drawn once, from the run's seed; the teacher does not answer them.
    """

    def __init__(self, prepared: PreparedRun, config: SeqkdConfig, teachers: tuple[str, ...], directory: Path):
        self.prepared, self.config, self.teachers, self.directory = prepared, config, teachers, directory
        self.responses_file, self.provenance_file = directory / "responses.jsonl", directory / "responses.json"
        gold_seed = derive_seed(prepared.config.seed, "seqkd gold")
        self._gold_examples, self._teacher_examples = _split_gold(prepared.data.train, config.gold_share, gold_seed)

    def sequences(self) -> list[TokenSequence]:
        """The training sequences of the stage: first the gold ones, then the teacher's."""
        return [example.sequence for example in self._gold_examples] + [_sequence(row) for row in read_json_lines(self.responses_file)]

    def provenance(self) -> dict[str, Any]:
        """Teachers, decoding, seed and data: everything that decides the responses."""
        settings = self.prepared.config
        return {
            "teachers": [member.model_dump() for member in settings.teacher.members],
            "teacher_weights": [fingerprint(model) for model in self.teachers],
            "temperature": 1.0,
            "dtype": settings.rollout.dtype,
            "samples_per_prompt": self.config.samples_per_prompt,
            "max_response_tokens": settings.data.max_response_tokens,
            "seed": settings.seed,
            "data": settings.data.model_dump(),
            "prompts": len(self._teacher_examples),
            "gold_share": self.config.gold_share,
        }

    def sample_missing(self, groups: Groups, observer: Observer) -> None:
        """Samples the responses that the file lacks. Replaces a file of other settings or weights."""
        self.directory.mkdir(parents=True, exist_ok=True)
        provenance = json.loads(json.dumps(self.provenance()))
        recorded = json.loads(self.provenance_file.read_text()) if self.provenance_file.is_file() else None
        if recorded is None or {"dtype": provenance["dtype"]} | recorded != provenance:  # earlier versions recorded no dtype
            self.responses_file.unlink(missing_ok=True)
            write_json(self.provenance_file, provenance)
        requests_by_teacher = self._requests_by_teacher()
        total, done = sum(map(len, requests_by_teacher)), drop_incomplete_line(self.responses_file)
        if done == total:
            return
        observer.stage_started("seqkd", total, done, "response")
        earlier_responses = 0  # of the teachers before this one
        for teacher, requests in zip(self.teachers, requests_by_teacher, strict=True):
            if missing := requests[max(0, done - earlier_responses) :]:
                observer.doing("seqkd", "starting the rollout group")
                with groups.rollout(teacher) as rollout, self.responses_file.open("a") as file:
                    for batch in split_into_batches(missing, RESPONSES_PER_APPEND):
                        observer.doing("seqkd", f"the teacher's responses, {done} of {total}")
                        for row in self._sample(rollout, batch):
                            file.write(json.dumps(row) + "\n")
                        file.flush()
                        done += len(batch)
                        observer.progressed(done)
            earlier_responses += len(requests)

    def _requests_by_teacher(self) -> list[list[SamplingRequest]]:
        """The sampling requests for each teacher.

        A record that names a teacher goes to that teacher. Teachers without ids share the records by random draws, with probabilities
        in proportion to their weights.
        """
        seed, members = derive_seed(self.prepared.config.seed, "seqkd"), self.prepared.config.teacher.members
        requests = sampling_requests([example.prompt for example in self._teacher_examples], self.config.samples_per_prompt, seed, 0)
        weights = np.array([member.weight for member in members])
        drawn = np.random.default_rng(seed).choice(len(members), size=len(requests), p=weights / weights.sum())
        ids = [member.id for member in members]
        teacher_indices = [drawn[i] if request.teacher is None else ids.index(request.teacher) for i, request in enumerate(requests)]
        return [[request for request, index in zip(requests, teacher_indices, strict=True) if index == k] for k in range(len(members))]

    def _sample(self, rollout: RolloutGroup, requests: list[SamplingRequest]) -> Iterator[dict[str, Any]]:
        limit, tokenizer = self.prepared.config.data.max_response_tokens, self.prepared.tokenizer
        for sampled in rollout.fetch(rollout.sample(requests, teacher_share=0.0, max_response_tokens=limit, weight_version=0)):
            yield {
                "prompt": tokenizer.decode(sampled.prompt_tokens),
                "response": tokenizer.decode(sampled.response_tokens, skip_special_tokens=True),
                "truncated": sampled.truncated,
                "prompt_index": sampled.prompt_index,
                "sample_index": sampled.sample_index,
                "teacher": sampled.teacher,
                "prompt_tokens": sampled.prompt_tokens.tolist(),
                "response_tokens": sampled.response_tokens.tolist(),
            }


def _split_gold(examples: list[Example], gold_share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Returns the examples that keep their gold response, and the examples that the teacher answers.

    The first are `gold_share` of all examples, drawn from those with a gold response (`prepare` raises InputError for too few of these).
    """
    answered = [i for i, example in enumerate(examples) if example.sequence.targets]
    gold = set(np.random.default_rng(seed).permutation(answered)[: round(gold_share * len(examples))].tolist())
    return [e for i, e in enumerate(examples) if i in gold], [e for i, e in enumerate(examples) if i not in gold]


def _sequence(row: dict[str, Any]) -> TokenSequence:
    tokens = np.array(row["prompt_tokens"] + row["response_tokens"], np.int64)
    return TokenSequence(tokens, np.arange(len(tokens)) >= len(row["prompt_tokens"]), row["teacher"])
