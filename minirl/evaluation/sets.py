"""The named sets of prompts that a model is judged on."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from transformers import PreTrainedTokenizerBase

from minirl.config.data import DataConfig
from minirl.config.evaluation import EvaluateConfig, EvaluationSetConfig
from minirl.data.examples import Example, load_examples
from minirl.errors import InputError


@dataclass(frozen=True)
class EvaluationSet:
    """examples: each with at least one reference. sha256: of the prompts' tokens and the references, what is asked and what is wanted."""

    name: str
    source: str
    examples: list[Example]
    sha256: str

    @property
    def references(self) -> list[tuple[str, ...]]:
        return [example.prompt.references for example in self.examples]


def load_sets(
    config: EvaluateConfig,
    data: DataConfig,
    test: list[Example],
    tokenizer: PreTrainedTokenizerBase,
    end_tokens: tuple[int, ...],
    teachers: tuple[str, ...] = (),
) -> list[EvaluationSet]:
    """In the order of the config. test: the run's own split; teachers: as of `load_data`. Raises InputError where nothing of a set can be
    judged.
    """
    sets = []
    for name, asked in config.sets.items():
        examples = test if asked.source is None else load_examples(asked.source, data, tokenizer, end_tokens, teachers)
        sets.append(evaluation_set(name, asked, examples, asked.prompts or config.prompts))
    return sets


def evaluation_set(name: str, asked: EvaluationSetConfig, examples: Iterable[Example], prompts: int) -> EvaluationSet:
    """The first so many of those that Rouge-L can judge."""
    fit = (e for e in examples if e.prompt.references and gold_words(e.prompt.references) >= asked.min_gold_words)
    kept = list(islice(fit, prompts))
    if not kept:
        long = f" of {asked.min_gold_words} words or more" if asked.min_gold_words else ""
        raise InputError(
            f"no record of the set stages.evaluate.sets.{name} has a response{long}; Rouge-L needs some: give another source"
            + (" or a lower min_gold_words" if long else "")
        )
    return EvaluationSet(name, asked.source or "the run's test split", kept, _digest(kept))


def gold_words(references: tuple[str, ...]) -> int:
    """Words of the gold response, the first where there are several."""
    return len(references[0].split())


def _digest(examples: list[Example]) -> str:
    hashed = hashlib.sha256()
    for example in examples:
        hashed.update(json.dumps([example.prompt.tokens.tolist(), example.prompt.references]).encode() + b"\n")
    return hashed.hexdigest()
