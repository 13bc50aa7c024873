"""WordNet records: from a database of a few words in WordNet's format, and from the real one if it is installed."""

from pathlib import Path

import pytest

from minirl.data.embedded.wordnet import DEBIAN_DIRECTORY, DIRECTORY_VARIABLE, read_sense, wordnet_conversations
from minirl.data.records import read_conversations
from minirl.errors import InputError

has_wordnet = pytest.mark.skipif(not (Path(DEBIAN_DIRECTORY) / "data.noun").is_file(), reason="Debian's wordnet-base is not installed")
LICENCE = "  1 This software and database is being provided to you, the LICENSEE.  \n"


def write_database(directory: Path, parts: dict[str, dict[str, list[tuple[str, str]]]], counted: dict[str, int]) -> None:
    """parts: file suffix -> lemma -> senses (words as in a data file, gloss). counted: how many senses of a lemma count; default all."""
    for part in ("noun", "verb", "adj", "adv"):
        data, index = LICENCE, LICENCE
        for lemma, senses in parts.get(part, {}).items():
            offsets = []
            for words, gloss in senses:
                offsets.append(f"{len(data):08d}")
                listed = " ".join(f"{word} 0" for word in words.split())
                data += f"{offsets[-1]} 03 {part[0]} {len(words.split()):02x} {listed} 001 @ 00000000 n 0000 | {gloss}  \n"
            number = counted.get(lemma, len(senses))
            index += f"{lemma} {part[0]} {len(senses)} 2 @ ~ {len(senses)} {number} {' '.join(offsets)}  \n"
        (directory / f"data.{part}").write_text(data)
        (directory / f"index.{part}").write_text(index)


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))

    def write(counted=None, **parts):
        write_database(tmp_path, parts, counted or {})
        return {conversation.messages[0].content: conversation.references for conversation in wordnet_conversations()}

    return write


def test_a_word_gives_a_definition_and_a_sentence_with_the_most_frequent_meaning_first(database):
    references = database(
        noun={"dog": [("dog domestic_dog", 'a member of the genus Canis; "the dog barked all night"'), ("dog", "a dull girl")]},
        verb={"dog": [("chase dog", 'go after; "The policeman dogged the thief"; "they dog him daily"')]},
    )
    assert references == {
        'What does the noun "dog" mean?': ("A member of the genus Canis.", "A dull girl."),
        'Use the noun "dog" in a sentence.': ("The dog barked all night.",),
        'What does the verb "dog" mean?': ("Go after.",),
        'Use the verb "dog" in a sentence.': ("They dog him daily.",),
    }


def test_uncounted_meanings_are_left_out(database):
    references = database(
        {"bank": 1, "zyx": 0}, noun={"bank": [("bank", "sloping land"), ("bank", "a flight maneuver")], "zyx": [("zyx", "x")]}
    )
    assert references == {'What does the noun "bank" mean?': ("Sloping land.",)}


def test_names_phrases_and_abbreviations_are_left_out(database):
    references = database(
        noun={
            "paris": [("Paris City_of_Light", "the capital of France")],
            "hot_dog": [("hot_dog", "a sausage")],
            "ox": [("ox", "an animal")],
        }
    )
    assert references == {}


def test_the_position_of_an_adjective_and_the_label_of_a_gloss_are_removed(database):
    references = database(adj={"afraid": [("afraid(p)", '(of persons) filled with fear; "is he afraid?"')]})
    assert references == {
        'What does the adjective "afraid" mean?': ("Filled with fear.",),
        'Use the adjective "afraid" in a sentence.': ("Is he afraid?",),
    }


def test_an_example_without_a_semicolon_before_it_is_still_split_off():
    line = "00004032 29 v 0a " + " ".join(f"w{i} 0" for i in range(10)) + ' 000 01 + 02 00 | heave a sigh "She sighed sadly"'
    sense = read_sense(line)
    assert sense.words == tuple(f"w{i}" for i in range(10)), "the number of words is hexadecimal"
    assert (sense.definition, sense.examples) == ("heave a sigh", ("She sighed sadly",))


@pytest.mark.parametrize("damage", ["index.noun", "data.noun"])
def test_a_damaged_database_is_one_sentence(database, tmp_path, damage):
    database(noun={"dog": [("dog", "an animal")]})
    (tmp_path / damage).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match=r"cannot read embedded:wordnet \(.*\); install its package again"):
        read_conversations("embedded:wordnet")


def test_a_missing_database_is_refused_with_advice(tmp_path, monkeypatch):
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=r"index\.noun is missing\); install Debian's package wordnet-base, or name .* WNSEARCHDIR"):
        wordnet_conversations()


@has_wordnet
def test_the_real_database_gives_clean_pairs_in_a_random_order(monkeypatch):
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
    conversations = wordnet_conversations()
    by_prompt = {conversation.messages[0].content: conversation for conversation in conversations}
    assert len(by_prompt) == len(conversations) > 20_000
    assert by_prompt['What does the verb "sigh" mean?'].references[0] == "Heave or utter a sigh; breathe deeply and heavily."
    assert "The dog barked all night." in by_prompt['Use the noun "dog" in a sentence.'].references
    for conversation in conversations:
        prompt, answer = (message.content for message in conversation.messages)
        assert answer == conversation.references[0] == answer.strip() and answer[-1] in ".?!" and len(answer) > 2 and prompt
    before_m = [conversation.messages[0].content.split('"')[1] < "m" for conversation in conversations]
    in_first, overall = sum(before_m[:2000]) / 2000, sum(before_m) / len(before_m)
    assert abs(in_first - overall) < 4 * (overall * (1 - overall) / 2000) ** 0.5  # 4 sigma
