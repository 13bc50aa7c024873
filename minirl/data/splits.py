"""Splits: records of several sources by limit and share, the split of a prompt, one record for each held-out prompt."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

from minirl.config.data import SourceConfig
from minirl.data.conversation import Conversation

SPLITS = ("train", "validation", "test")


def read_sources(
    sources: list[SourceConfig], limit: int | None, read: Callable[[str, int | None], list[Conversation]]
) -> dict[str, list[Conversation]]:
    """The records of each source by its name; a limit or a share takes the first ones.

    limit: applies to every source. read: reads a source, given its name and a limit.

    With shares, the source with the fewest records for its share gives all of them, and the others give what fits to that: of 300 and
    1,000 records at shares 0.75 and 0.25, 300 and 100.
    """
    records_by_source = {
        source.source: read(source.source, min((n for n in (source.limit, limit) if n), default=None)) for source in sources
    }
    shares = {source.source: source.share for source in sources if source.share}
    if not shares:
        return records_by_source
    total = min(len(records_by_source[name]) / share for name, share in shares.items())
    return {name: records[: max(1, round(shares[name] * total))] for name, records in records_by_source.items()}


def split_of_prompt(prompt_text: str, shares: dict[str, float]) -> str:
    """The split of a prompt. Case, spacing and punctuation are ignored, so that near-copies of a prompt are in one split."""
    words = "".join(character if character.isalnum() else " " for character in prompt_text.casefold()).split()
    key = " ".join(words) or prompt_text
    position = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64  # in [0, 1)
    for split, share in shares.items():
        if position < share:
            return split
        position -= share
    return "train"


def merge_equal_prompts(records: list[tuple[int, Conversation]]) -> list[tuple[int, Conversation]]:
    by_prompt: dict[str, tuple[int, Conversation]] = {}
    for index, conversation in records:
        first_index, first = by_prompt.get(conversation.prompt_text, (index, None))
        if first is not None:
            references = tuple(dict.fromkeys(first.references + conversation.references))
            conversation = replace(first if first.has_response else conversation, references=references)
        by_prompt[conversation.prompt_text] = first_index, conversation
    return list(by_prompt.values())
