"""The data set of the stage `seqkd`: the teacher's own responses to the training prompts, as a file that says where it comes from."""

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
from minirl.files import drop_half_line, read_json_lines, write_json
from minirl.model.loading import fingerprint
from minirl.seeds import derive_seed
from minirl.training.on_policy_loop import sampling_requests
from minirl.types import SamplingRequest, TokenSequence

AT_ONCE = 512  # responses between two appends: what a kill may lose


class TeacherResponses:
    """`responses.jsonl` in the stage's directory, one line a response with its token ids; `responses.json` says who wrote it, and how.

    share of gold: those prompts are drawn once, from the run's seed, and get no response.
    """

    def __init__(self, prepared: PreparedRun, config: SeqkdConfig, teachers: tuple[str, ...], directory: Path):
        self.prepared, self.config, self.teachers, self.directory = prepared, config, teachers, directory
        self.rows, self.about = directory / "responses.jsonl", directory / "responses.json"
        self._gold, self._asked = _divide(prepared.data.train, config.gold_share, derive_seed(prepared.config.seed, "seqkd gold"))

    def sequences(self) -> list[TokenSequence]:
        """What the stage learns from: gold sequences of the one part of the prompts, the teacher's of the other."""
        return [example.sequence for example in self._gold] + [_sequence(row) for row in read_json_lines(self.rows)]

    def provenance(self) -> dict[str, Any]:
        settings = self.prepared.config
        return {
            "teachers": [member.model_dump() for member in settings.teacher.members],
            "teacher_weights": [fingerprint(model) for model in self.teachers],
            "temperature": 1.0,
            "samples_per_prompt": self.config.samples_per_prompt,
            "max_response_tokens": settings.data.max_response_tokens,
            "seed": settings.seed,
            "data": settings.data.model_dump(),
            "prompts": len(self._asked),
            "gold_share": self.config.gold_share,
        }

    def make(self, groups: Groups, observer: Observer) -> None:
        """Sample what is not there yet. A file of other settings or weights is begun anew."""
        self.directory.mkdir(parents=True, exist_ok=True)
        provenance = json.loads(json.dumps(self.provenance()))
        if not self.about.is_file() or json.loads(self.about.read_text()) != provenance:
            self.rows.unlink(missing_ok=True)
            write_json(self.about, provenance)
        shares = self._shares()
        wanted, done = sum(map(len, shares)), drop_half_line(self.rows)
        if done == wanted:
            return
        observer.stage_started("seqkd", wanted, done, "response")
        before = 0  # responses of the teachers that come before
        for teacher, requests in zip(self.teachers, shares, strict=True):
            if missing := requests[max(0, done - before) :]:
                observer.doing("seqkd", "starting the rollout group")
                with groups.rollout(teacher) as rollout, self.rows.open("a") as file:
                    for batch in split_into_batches(missing, AT_ONCE):
                        observer.doing("seqkd", f"the teacher's responses, {done} of {wanted}")
                        for row in self._sample(rollout, batch):
                            file.write(json.dumps(row) + "\n")
                        file.flush()
                        done += len(batch)
                        observer.progressed(done)
            before += len(requests)

    def _shares(self) -> list[list[SamplingRequest]]:
        """What each teacher is asked: the records that name it, or of several without ids as many as their weights say, drawn once."""
        seed, members = derive_seed(self.prepared.config.seed, "seqkd"), self.prepared.config.teacher.members
        requests = sampling_requests([example.prompt for example in self._asked], self.config.samples_per_prompt, seed, 0)
        weights = np.array([member.weight for member in members])
        drawn = np.random.default_rng(seed).choice(len(members), size=len(requests), p=weights / weights.sum())
        ids = [member.id for member in members]
        chosen = [drawn[i] if request.teacher is None else ids.index(request.teacher) for i, request in enumerate(requests)]
        return [[request for request, place in zip(requests, chosen, strict=True) if place == k] for k in range(len(members))]

    def _sample(self, rollout: RolloutGroup, requests: list[SamplingRequest]) -> Iterator[dict[str, Any]]:
        limit, tokenizer = self.prepared.config.data.max_response_tokens, self.prepared.tokenizer
        for one in rollout.fetch(rollout.sample(requests, teacher_share=0.0, max_response_tokens=limit, weight_version=0)):
            yield {
                "prompt": tokenizer.decode(one.prompt_tokens),
                "response": tokenizer.decode(one.response_tokens, skip_special_tokens=True),
                "truncated": one.truncated,
                "prompt_index": one.prompt_index,
                "sample_index": one.sample_index,
                "teacher": one.teacher,
                "prompt_tokens": one.prompt_tokens.tolist(),
                "response_tokens": one.response_tokens.tolist(),
            }


def _divide(examples: list[Example], gold_share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(gold, asked): those with a gold response may keep it, as many as the share of all says (`prepare` has refused too few)."""
    answered = [i for i, example in enumerate(examples) if example.sequence.targets]
    kept = set(np.random.default_rng(seed).permutation(answered)[: round(gold_share * len(examples))].tolist())
    return [e for i, e in enumerate(examples) if i in kept], [e for i, e in enumerate(examples) if i not in kept]


def _sequence(row: dict[str, Any]) -> TokenSequence:
    tokens = np.array(row["prompt_tokens"] + row["response_tokens"], np.int64)
    return TokenSequence(tokens, np.arange(len(tokens)) >= len(row["prompt_tokens"]), row["teacher"])
