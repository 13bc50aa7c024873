"""Instruction data in tokens: examples to sample from and to fine-tune on, split so that no prompt is on two sides."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

from minirl.config.data import DataConfig, SourceConfig
from minirl.data.conversation import Conversation
from minirl.data.records import read_conversations
from minirl.data.reference_files import is_tokenised_source, tokenised_conversations
from minirl.data.templates import Segment, Template, make_template
from minirl.errors import InputError
from minirl.types import Prompt, TokenSequence

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One record: `prompt` is everything before the last response, `sequence` the whole conversation.

    The prompt's tokens begin the sequence, the prompt's gold response ends it. The sequence's targets are the assistant's tokens of
    *every* turn with their end tokens; a record without any response has a sequence without targets.
    """

    prompt: Prompt
    sequence: TokenSequence


@dataclass(frozen=True)
class InstructionData:
    """report: counts, `records` read (`from_...` each source of training records, where there are several) and `train`, `validation`,
    `test` kept, `overlong_prompts_dropped`, `responses_truncated` (cut at the limit, end token lost), `without_response`, `merged`
    (held-out records that share their prompt with another)."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    report: dict[str, int]


def load_data(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, end_tokens: tuple[int, ...], teachers: tuple[str, ...] = ()
) -> InstructionData:
    """Read, split and tokenise. `end_tokens`: `templates.end_tokens`; `teachers`: the ids of which every record must name one in
    `teacher_id`, none where that column does not count. Raises InputError naming what cannot be used and where.

    A split without a source of its own takes its share of `train` by a hash of the prompt's text, whatever the records' order or
    number; there, records with one prompt become one example with all their references, so that each held-out prompt counts once.
    """
    encode = _Encoder(config, tokenizer, end_tokens, teachers)
    splits = _read_splits(config, encode)
    examples = {split: list(encode.all(conversations)) for split, conversations in splits.items()}
    for split, kept in examples.items():
        if not kept:
            raise InputError(_why_empty(split, config, had_records=bool(splits[split])))
    counts = {name: encode.counts[name] for name in ("overlong_prompts_dropped", "responses_truncated", "without_response", "merged")}
    sizes = {split: len(examples[split]) for split in SPLITS}
    sources = {name: count for name, count in encode.counts.items() if name.startswith("from_")}
    return InstructionData(**examples, report={"records": encode.counts["records"], **sources, **sizes, **counts})


def load_examples(
    source: str, config: DataConfig, tokenizer: PreTrainedTokenizerBase, end_tokens: tuple[int, ...], teachers: tuple[str, ...] = ()
) -> Iterator[Example]:
    """Held-out records of one source, in their order, with the template and limits of `config`. Raises InputError as `load_data`.

    Made as they are asked for: a few may be wanted of many.
    """
    encode = _Encoder(config, tokenizer, end_tokens, teachers)
    return encode.all(enumerate(encode.read(source, "test")))


def _read_splits(config: DataConfig, encode: "_Encoder") -> dict[str, list[tuple[int, Conversation]]]:
    """Conversations by split, each with its index; indices go on from one source to the next, so they are unique in the run."""
    counts = encode.counts
    splits: dict[str, list[tuple[int, Conversation]]] = {split: [] for split in SPLITS}
    shares = {split: getattr(config, f"{split}_share") for split in SPLITS[1:] if getattr(config, split) is None}
    sources = read_sources(config.train, config.limit, lambda source, limit: encode.read(source, "train", limit))
    for index, conversation in enumerate(record for records in sources.values() for record in records):
        splits[split_of_prompt(conversation.prompt_text, shares)].append((index, conversation))
    counts["records"] += sum(map(len, sources.values()))
    if len(sources) > 1:
        counts.update({f"from_{name}": len(records) for name, records in sources.items()})
    for split in shares:
        merged = _merge(splits[split])
        counts["merged"] += len(splits[split]) - len(merged)
        splits[split] = merged
    for split in SPLITS[1:]:
        if source := getattr(config, split):
            conversations = encode.read(source, split, config.limit)
            splits[split] = list(enumerate(conversations, start=counts["records"]))
            counts["records"] += len(conversations)
    return splits


def split_of_prompt(prompt_text: str, shares: dict[str, float]) -> str:
    """The split of a prompt. Case, spacing and punctuation don't count: near-copies of a prompt are on one side."""
    words = "".join(character if character.isalnum() else " " for character in prompt_text.casefold()).split()
    key = " ".join(words) or prompt_text
    place = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


def _merge(records: list[tuple[int, Conversation]]) -> list[tuple[int, Conversation]]:
    by_prompt: dict[str, tuple[int, Conversation]] = {}
    for index, conversation in records:
        first_index, first = by_prompt.get(conversation.prompt_text, (index, None))
        if first is not None:
            references = tuple(dict.fromkeys(first.references + conversation.references))
            conversation = replace(first if first.has_response else conversation, references=references)
        by_prompt[conversation.prompt_text] = first_index, conversation
    return list(by_prompt.values())


def _why_empty(split: str, config: DataConfig, had_records: bool) -> str:
    if had_records:
        return f"every prompt of the {split} data is longer than data.max_prompt_tokens = {config.max_prompt_tokens}; raise it"
    sources = " with ".join(one.source for one in config.train)
    return f"{sources} has too few different prompts to split, {split} is left without any; raise data.{split}_share or give data.{split}"


class _Encoder:
    def __init__(
        self, config: DataConfig, tokenizer: PreTrainedTokenizerBase, end_tokens: tuple[int, ...], teachers: tuple[str, ...]
    ) -> None:
        if config.system_prompt is not None and config.template == "alpaca":
            raise InputError("the template alpaca has a fixed preamble; leave data.system_prompt out, or set data.template: chat")
        self.config, self.tokenizer, self.end_tokens, self.teachers = config, tokenizer, end_tokens, teachers
        self.end_texts = tuple(tokenizer.convert_ids_to_tokens(list(end_tokens)))
        self.counts: Counter = Counter()

    @cached_property
    def template(self) -> Template:
        """Where everything is tokenised already, none is needed."""
        return make_template(self.config.template, self.tokenizer, self.end_tokens)

    def read(self, source: str, split: str, limit: int | None = None) -> list[Conversation]:
        if not is_tokenised_source(source):
            return read_conversations(source, limit)
        if self.config.system_prompt is not None:
            raise InputError(f"the prompts of {source} are tokenised already and take no system prompt; leave data.system_prompt out")
        return tokenised_conversations(source, split, self.tokenizer, self.end_tokens, limit)

    def all(self, conversations: Iterable[tuple[int, Conversation]]) -> Iterator[Example]:
        examples = (self.example(index, conversation) for index, conversation in conversations)
        return (example for example in examples if example is not None)

    def example(self, index: int, conversation: Conversation) -> Example | None:
        """None where the prompt is too long and such prompts are dropped."""
        segments = self._segments(conversation)
        history = segments[:-1] if conversation.has_response else segments
        tokens = [token for segment in history for token in segment.tokens]
        is_target = [i < segment.targets for segment in history for i in range(len(segment.tokens))]
        if not tokens:
            raise InputError(f"{conversation.origin} has an empty prompt; nothing can be sampled from it")
        if self._overlong(len(tokens), conversation):
            return None
        gold = self._gold(segments[-1].tokens[: segments[-1].targets]) if conversation.has_response else []
        self.counts["without_response"] += not conversation.has_response
        teacher = self._teacher(conversation)
        text = conversation.prompt_text
        prompt = Prompt(np.array(tokens, np.int64), index, conversation.references, np.array(gold, np.int64), teacher, text)
        targets = np.array(is_target + [True] * len(gold))
        return Example(prompt, TokenSequence(np.concatenate([prompt.tokens, prompt.gold]), targets, teacher))

    def _segments(self, conversation: Conversation) -> list[Segment]:
        if conversation.tokens is None:
            self._refuse_end_texts(conversation)
            return self.template(self._with_system_prompt(conversation))
        prompt, response = conversation.tokens
        return [Segment(list(prompt), 0), *([Segment(list(response), len(response))] if response else [])]

    def _with_system_prompt(self, conversation: Conversation) -> Conversation:
        if self.config.system_prompt is None or conversation.messages[0][0] == "system":
            return conversation
        return replace(conversation, messages=(("system", self.config.system_prompt), *conversation.messages))

    def _refuse_end_texts(self, conversation: Conversation) -> None:
        for role, content in conversation.messages:
            for text in self.end_texts if role == "assistant" else ():
                if text in content:
                    raise InputError(
                        f"{conversation.origin} has the end token {text!r} inside a response; remove it, it is added by itself"
                    )

    def _teacher(self, conversation: Conversation) -> str | None:
        if not self.teachers:
            return None
        if conversation.teacher not in self.teachers:
            raise InputError(
                f"{conversation.origin} has the teacher_id {conversation.teacher!r}; each record must name one of the teachers "
                f"{', '.join(self.teachers)}"
            )
        return conversation.teacher

    def _overlong(self, length: int, conversation: Conversation) -> bool:
        if length <= self.config.max_prompt_tokens:
            return False
        if self.config.overlong_prompts == "error":
            raise InputError(
                f"the prompt of {conversation.origin} has {length} tokens, more than data.max_prompt_tokens = "
                f"{self.config.max_prompt_tokens}; raise it, or set data.overlong_prompts: drop"
            )
        self.counts["overlong_prompts_dropped"] += 1
        return True

    def _gold(self, tokens: list[int]) -> list[int]:
        self.counts["responses_truncated"] += len(tokens) > self.config.max_response_tokens
        return tokens[: self.config.max_response_tokens]


def read_sources(
    sources: list[SourceConfig], limit: int | None, read: Callable[[str, int | None], list[Conversation]]
) -> dict[str, list[Conversation]]:
    """The records of each source, its first ones where it has a limit or a share. limit: of any source; read: from name and limit.

    With shares the source that has the fewest records for its share gives all of them, and the others what goes with that: of 300 and
    1,000 records at shares 0.75 and 0.25, 300 and 100.
    """
    found = {one.source: read(one.source, min((n for n in (one.limit, limit) if n), default=None)) for one in sources}
    shares = {one.source: one.share for one in sources if one.share}
    if not shares:
        return found
    whole = min(len(found[name]) / share for name, share in shares.items())
    return {name: records[: max(1, round(shares[name] * whole))] for name, records in found.items()}
