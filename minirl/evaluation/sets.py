"""Evaluation sets: the named sets of held-out prompts on which models are measured, loaded from the config."""

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
from minirl.evaluation.words import rouge_tokenizer, words_of


@dataclass(frozen=True)
class EvaluationSet:
    """examples: each with at least one reference. sha256: hash of the prompts' tokens and the references."""

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
    vocabulary: int | None = None,
) -> list[EvaluationSet]:
    """Sets in the order of the config. test: the run's test split; teachers, vocabulary: as in `load_data`.

    Raises InputError where no record of a set can be used, or where the paper's tokenizer finds no word in any reference of a set.
    """
    sets = []
    for name, set_config in config.sets.items():
        examples = (
            test if set_config.source is None else load_examples(set_config.source, data, tokenizer, end_tokens, teachers, vocabulary)
        )
        sets.append(evaluation_set(name, set_config, examples, set_config.prompts or config.prompts))
        if config.rouge_tokenizer == "paper":
            _check_ascii(sets[-1])
    return sets


def evaluation_set(name: str, config: EvaluationSetConfig, examples: Iterable[Example], prompts: int) -> EvaluationSet:
    """The first `prompts` examples that have references with enough gold words for Rouge-L."""
    usable = (e for e in examples if e.prompt.references and gold_words(e.prompt.references) >= config.min_gold_words)
    selected = list(islice(usable, prompts))
    if not selected:
        length = f" of {config.min_gold_words} words or more" if config.min_gold_words else ""
        raise InputError(
            f"no record of the set stages.evaluate.sets.{name} has a response{length}; Rouge-L needs one: name another source"
            + (" or lower min_gold_words" if length else "")
        )
    return EvaluationSet(name, config.source or "the run's test split", selected, _digest(selected))


def _check_ascii(evaluation_set: EvaluationSet) -> None:
    tokenizer = rouge_tokenizer("paper")
    if not any(tokenizer.tokenize(reference) for references in evaluation_set.references for reference in references):
        raise InputError(
            f"stages.evaluate.rouge_tokenizer: paper counts ASCII letters and digits alone, and no response of the set "
            f"stages.evaluate.sets.{evaluation_set.name} has any, so every Rouge-L would be 0; set rouge_tokenizer: any_script"
        )


def gold_words(references: tuple[str, ...]) -> int:
    """Number of words of the gold response, which is the first reference. In scripts without spaces, characters count."""
    return len(words_of(references[0]))


def _digest(examples: list[Example]) -> str:
    hashed = hashlib.sha256()
    for example in examples:
        hashed.update(json.dumps([example.prompt.tokens.tolist(), example.prompt.references]).encode() + b"\n")
    return hashed.hexdigest()
