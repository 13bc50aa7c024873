"""Instruction data in tokens: reads the sources, splits them by prompt, and makes examples.

No prompt is in two splits.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

from minirl.config.data import DataConfig
from minirl.data.conversation import Conversation, Message
from minirl.data.records import read_conversations
from minirl.data.reference_files import is_tokenised_source, tokenised_conversations
from minirl.data.rendered_fields import RenderedFields
from minirl.data.segment import Segment
from minirl.data.splits import SPLITS, merge_equal_prompts, read_sources, split_of_prompt
from minirl.data.templates import Template, make_template
from minirl.data.vocab import check_ids
from minirl.errors import InputError
from minirl.types import Prompt, TokenSequence

COUNTS = ("overlong_prompts_dropped", "responses_truncated", "without_response", "merged", "turns_apart", "thoughts_closed")


@dataclass(frozen=True)
class Example:
    """One record: `prompt` is everything before the last response, `sequence` the whole conversation.

    The sequence begins with the prompt's tokens and ends with the prompt's gold response. Its targets are the assistant's tokens of
    *every* turn with their end tokens. A record without any response has a sequence without targets.
    """

    prompt: Prompt
    sequence: TokenSequence


@dataclass(frozen=True)
class InstructionData:
    """The examples of all splits, and counts of what was read.

    report: `records` read (`from_...` for each source of training records, if there are several); the examples of `train`, `validation`
    and `test`; `overlong_prompts_dropped`; `responses_truncated` (cut at the limit, end token lost); `without_response`; `merged`
    (held-out records that were merged into another one with the same prompt); `turns_apart` (examples beyond one for each record, because
    the template rewrites earlier turns, so that each learnt turn of a conversation is an example); `thoughts_closed` (examples without a
    thought where the template's invitation opens one: their response closes it at once).
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    report: dict[str, int]

    @cached_property
    def training_sha256(self) -> str:
        """Hash of the sequences of `train` and `validation`: everything that fine-tuning on this data depends on."""
        hashed = hashlib.sha256()
        for example in (*self.train, *self.validation):
            hashed.update(f"{len(example.sequence.tokens)} ".encode())
            hashed.update(example.sequence.tokens.tobytes() + example.sequence.is_target.tobytes())
        hashed.update(f"{len(self.train)}".encode())
        return hashed.hexdigest()


def load_data(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    end_tokens: tuple[int, ...],
    teachers: tuple[str, ...] = (),
    vocabulary: int | None = None,
    *,
    key: str = "data",
) -> InstructionData:
    """Reads, splits and tokenises all records. Raises InputError that names what cannot be used, and where.

    end_tokens: from `templates.end_tokens`. teachers: ids, of which every record must name one in its column `teacher_id`; empty: the
    column is ignored. vocabulary: the number of ids that student and teacher share; None: not checked. key: the config key of the sources,
    for messages.

    A split without its own source gets its share of `train` by a hash of the prompt's text, whatever the order or number of the records.
    In such a split, records with the same prompt become one example with all their references, so that each held-out prompt counts once.
    """
    encoder = _Encoder(config, tokenizer, end_tokens, teachers, vocabulary)
    splits = _read_splits(config, encoder)
    examples = {split: list(encoder.examples(conversations)) for split, conversations in splits.items()}
    for split, encoded in examples.items():
        if not encoded:
            raise InputError(_why_empty(split, config, key, had_records=bool(splits[split])))
    counts = {name: encoder.counts[name] for name in COUNTS}
    sizes = {split: len(examples[split]) for split in SPLITS}
    sources = {name: count for name, count in encoder.counts.items() if name.startswith("from_")}
    return InstructionData(**examples, report={"records": encoder.counts["records"], **sources, **sizes, **counts})


def load_examples(
    source: str,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    end_tokens: tuple[int, ...],
    teachers: tuple[str, ...] = (),
    vocabulary: int | None = None,
) -> Iterator[Example]:
    """The records of one held-out source, in its order, with the template and limits of `config`. Raises InputError as `load_data` does.

    It yields examples lazily, because a caller may need only a few of many.
    """
    encoder = _Encoder(config, tokenizer, end_tokens, teachers, vocabulary)
    return encoder.examples(enumerate(turn for record in encoder.read(source, "test") for turn in encoder.turns(record)))


# --- reading and splitting ---


def _read_splits(config: DataConfig, encoder: "_Encoder") -> dict[str, list[tuple[int, Conversation]]]:
    """Conversations by split, each with its index. Indices continue from one source to the next, so they are unique in the run."""
    counts = encoder.counts
    splits: dict[str, list[tuple[int, Conversation]]] = {split: [] for split in SPLITS}
    shares = {split: getattr(config, f"{split}_share") for split in SPLITS[1:] if getattr(config, split) is None}
    sources = read_sources(config.train, config.limit, lambda source, limit: encoder.read(source, "train", limit))
    turns = [turn for records in sources.values() for record in records for turn in encoder.turns(record)]
    for index, conversation in enumerate(turns):
        splits[split_of_prompt(conversation.prompt_text, shares)].append((index, conversation))
    counts["records"] += sum(map(len, sources.values()))
    if len(sources) > 1:
        counts.update({f"from_{name}": len(records) for name, records in sources.items()})
    for split in shares:
        merged = merge_equal_prompts(splits[split])
        counts["merged"] += len(splits[split]) - len(merged)
        splits[split] = merged
    next_index = len(turns)
    for split in SPLITS[1:]:
        if source := getattr(config, split):
            conversations = encoder.read(source, split, config.limit)
            turns = [turn for conversation in conversations for turn in encoder.turns(conversation)]
            splits[split] = list(enumerate(turns, start=next_index))
            next_index += len(turns)
            counts["records"] += len(conversations)
    return splits


def _why_empty(split: str, config: DataConfig, key: str, had_records: bool) -> str:
    if had_records:
        return f"every prompt of the {split} data is longer than data.max_prompt_tokens = {config.max_prompt_tokens}; raise it"
    sources = " with ".join(source.source for source in config.train)
    if split == "train":
        return f"{sources} has too few different prompts to split, so none is left to train on; set {key}.validation and {key}.test"
    return f"{sources} has too few different prompts to split, so {split} is empty; raise {key}.{split}_share or set {key}.{split}"


# --- from conversations to tokens ---


class _Encoder:
    """Reads sources and turns conversations into examples. counts: what it met on the way, for `InstructionData.report`."""

    def __init__(
        self,
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: tuple[int, ...],
        teachers: tuple[str, ...],
        vocabulary: int | None = None,
    ) -> None:
        if config.system_prompt is not None and config.template == "alpaca":
            raise InputError("the template alpaca has a fixed preamble; leave data.system_prompt out, or set data.template: chat")
        if config.template_arguments and config.template == "alpaca":
            raise InputError("the template alpaca takes no arguments; leave data.template_arguments out, or set data.template: chat")
        self.config, self.tokenizer, self.end_tokens, self.teachers = config, tokenizer, end_tokens, teachers
        self.vocabulary = vocabulary
        self.end_texts = tuple(tokenizer.convert_ids_to_tokens(list(end_tokens)))
        self.counts: Counter = Counter()

    @cached_property
    def template(self) -> Template:
        """Made at first use, because tokenised sources need none and the tokenizer may have none."""
        return make_template(self.config.template, self.tokenizer, self.end_tokens, self.config.template_arguments)

    @cached_property
    def rendered_fields(self) -> RenderedFields:
        return RenderedFields(self.template)

    def read(self, source: str, split: str, limit: int | None = None) -> list[Conversation]:
        if not is_tokenised_source(source):
            return read_conversations(source, limit, self.config.ignore_columns)
        if self.config.system_prompt is not None:
            raise InputError(f"the prompts of {source} are tokenised already and take no system prompt; leave data.system_prompt out")
        return tokenised_conversations(source, split, self.tokenizer, self.end_tokens, limit)

    def turns(self, conversation: Conversation) -> list[Conversation]:
        """The conversation, or one for each learnt turn where the template rewrites earlier turns."""
        if conversation.tokens is not None or self.template.is_one_sequence(self._with_system_prompt(conversation)):
            return [conversation]
        turns = conversation.by_turn()
        self.counts["turns_apart"] += len(turns) - 1
        return turns

    def examples(self, conversations: Iterable[tuple[int, Conversation]]) -> Iterator[Example]:
        examples = (self.example(index, conversation) for index, conversation in conversations)
        return (example for example in examples if example is not None)

    def example(self, index: int, conversation: Conversation) -> Example | None:
        """None if the prompt is too long and such prompts are dropped."""
        segments = self._segments(conversation)
        history = segments[:-1] if conversation.has_response else segments
        tokens = [token for segment in history for token in segment.tokens]
        is_target = [is_target for segment in history for is_target in segment.is_target]
        if not tokens:
            raise InputError(f"{conversation.origin} has an empty prompt, which nothing can be sampled from; remove the record")
        if self._drops_prompt(len(tokens), conversation):
            return None
        gold = self._truncated(segments[-1].tokens[: segments[-1].gold]) if conversation.has_response else []
        if self.vocabulary is not None:
            check_ids((*tokens, *gold), self.vocabulary, self.tokenizer, conversation.origin)
        self.counts["without_response"] += not conversation.has_response
        self.counts["thoughts_closed"] += any(segment.thought_closed for segment in segments)
        teacher = self._teacher(conversation)
        references, text = conversation.references, conversation.prompt_text
        if gold and not references:  # a call of tools, whose text exists only once it is rendered
            references = (self.tokenizer.decode(gold, skip_special_tokens=True),)
        prompt = Prompt(np.array(tokens, np.int64), index, references, np.array(gold, np.int64), teacher, text)
        targets = np.array(is_target + segments[-1].is_target[: len(gold)])
        return Example(prompt, TokenSequence(np.concatenate([prompt.tokens, prompt.gold]), targets, teacher))

    def _segments(self, conversation: Conversation) -> list[Segment]:
        if conversation.tokens is None:
            self._refuse_end_texts(conversation)
            conversation = self._with_system_prompt(conversation)
            segments = self.template(conversation)
            self.rendered_fields.check(conversation, segments)
            return segments
        prompt, response = conversation.tokens
        return [Segment.of(list(prompt)), *([Segment.of(list(response), [True] * len(response))] if response else [])]

    def _with_system_prompt(self, conversation: Conversation) -> Conversation:
        if self.config.system_prompt is None or conversation.messages[0].role == "system":
            return conversation
        return replace(conversation, messages=(Message("system", self.config.system_prompt), *conversation.messages))

    def _refuse_end_texts(self, conversation: Conversation) -> None:
        for message in conversation.messages:
            for text in self.end_texts if message.role == "assistant" else ():
                if text in message.text:
                    raise InputError(
                        f"{conversation.origin} has the end token {text!r} inside a response; remove it, because the template adds it"
                    )

    def _drops_prompt(self, length: int, conversation: Conversation) -> bool:
        """Whether a prompt of `length` tokens is dropped. Raises InputError if it is too long and `overlong_prompts` is `error`."""
        if length <= self.config.max_prompt_tokens:
            return False
        if self.config.overlong_prompts == "error":
            raise InputError(
                f"the prompt of {conversation.origin} has {length} tokens, more than data.max_prompt_tokens = "
                f"{self.config.max_prompt_tokens}; raise it, or set data.overlong_prompts: drop"
            )
        self.counts["overlong_prompts_dropped"] += 1
        return True

    def _truncated(self, gold: list[int]) -> list[int]:
        self.counts["responses_truncated"] += len(gold) > self.config.max_response_tokens
        return gold[: self.config.max_response_tokens]

    def _teacher(self, conversation: Conversation) -> str | None:
        if not self.teachers:
            return None
        if conversation.teacher not in self.teachers:
            raise InputError(
                f"{conversation.origin} has the teacher_id {conversation.teacher!r}; each record must name one of the teachers "
                f"{', '.join(self.teachers)}"
            )
        return conversation.teacher
