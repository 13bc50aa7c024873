"""Student and teacher must mean the same by a token id: compare their tokenizers, never `config.vocab_size` alone."""

from transformers import PreTrainedTokenizerBase

from minirl.errors import InputError

PROBES = (
    "The quick brown fox doesn't jump over 1,234.5 lazy dogs.",
    "  def f(x):\n\treturn x ** 2  # twice\n\n",
    "Größe, naïve café, Ελληνικά, русский, 中文字符, हिन्दी, العربية, 🙂👩‍👩‍👧",
    "<|im_start|>user\nHello<|im_end|><|endoftext|></s>[INST]",
)
_CONSEQUENCE = "distillation needs one tokenizer for both, so choose two models of one family"


def shared_vocabulary(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, student_vocab_size: int, teacher_vocab_size: int
) -> int:
    """The number of ids that both models know: the smaller `config.vocab_size` (one tokenizer may be padded to several widths).

    Raises InputError saying how they differ where the tokenizers differ, or where theirs reaches past the smaller model.
    """
    _compare_tokens(student.get_vocab(), teacher.get_vocab())
    _compare_special(student, teacher)
    _compare_encodings(student, teacher)
    size, highest = min(student_vocab_size, teacher_vocab_size), highest_id(student)
    if highest >= size:
        model = "student" if student_vocab_size == size else "teacher"
        raise InputError(
            f"the tokenizer uses ids up to {highest}, but the {model} has only {size} (config.vocab_size); "
            f"resize the {model}'s embeddings to at least {highest + 1} or choose another model"
        )
    return size


def highest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values())


def _compare_tokens(student: dict[str, int], teacher: dict[str, int]) -> None:
    differing = sorted(token for token in student.keys() | teacher.keys() if student.get(token) != teacher.get(token))
    if differing:
        example, total = differing[0], len(student.keys() | teacher.keys())
        raise InputError(
            f"the tokenizers of student and teacher differ in {len(differing)} of {total} tokens, for example {example!r} "
            f"{_place(student, example)} in the student's and {_place(teacher, example)} in the teacher's; {_CONSEQUENCE}"
        )


def _place(vocabulary: dict[str, int], token: str) -> str:
    return f"is {vocabulary[token]}" if token in vocabulary else "is missing"


def _compare_special(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    for name in ("eos_token", "bos_token"):
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise InputError(
                f"the tokenizers of student and teacher have the same tokens but another {name} ({ours!r} and {theirs!r}), so one would "
                "not end where the other does; take both models from the instruct side or both from the base side of a family"
            )


def _compare_encodings(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    for probe in PROBES:
        ours, theirs = (tokenizer.encode(probe, add_special_tokens=False) for tokenizer in (student, teacher))
        if ours != theirs:
            raise InputError(
                f"the tokenizers of student and teacher have the same tokens but cut text differently, for example {probe!r} into "
                f"{len(ours)} and {len(theirs)} tokens, first apart at token {_first_difference(ours, theirs)}; {_CONSEQUENCE}"
            )


def _first_difference(ours: list[int], theirs: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
