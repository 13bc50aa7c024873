"""The vocabulary that student and teacher share: checks that every token id means the same to both.

It compares the tokenizers: an equal `config.vocab_size` alone proves nothing.
"""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from minirl.errors import InputError

PROBES = (
    "The quick brown fox doesn't jump over 1,234.5 lazy dogs.",
    "  def f(x):\n\treturn x ** 2  # twice\n\n",
    "Größe, naïve café, Ελληνικά, русский, 中文字符, हिन्दी, العربية, 🙂👩‍👩‍👧",
    "<|im_start|>user\nHello<|im_end|><|endoftext|></s>[INST]",
)
_ADVICE = "distillation needs one tokenizer for both, so choose two models of one family"


def shared_vocabulary(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, student_vocab_size: int, teacher_vocab_size: int
) -> int:
    """The number of ids that both models know: the smaller `config.vocab_size` (models of one tokenizer may pad it to different sizes).

    Raises InputError if the tokenizers differ, with the first difference, or if they have ids that the smaller model does not know. Two
    differences do no harm: a padding token that only one tokenizer has, because masks come from lengths, and added tokens beyond the
    models' ids (Gemma 3's `<image_soft_token>`), as long as no text holds them (`check_ids`).
    """
    _compare_tokens(student, teacher)
    _compare_special(student, teacher)
    _compare_encodings(student, teacher)
    size, highest = min(student_vocab_size, teacher_vocab_size), highest_token_id(student)
    added = student.added_tokens_decoder.keys() | teacher.added_tokens_decoder.keys()
    if any(id >= size and id not in added for id in student.get_vocab().values()):
        model = "student" if student_vocab_size == size else "teacher"
        raise InputError(
            f"the tokenizer uses ids up to {highest}, but the {model} has only {size} (config.vocab_size); "
            f"resize the {model}'s embeddings to at least {highest + 1} or choose another model"
        )
    return size


def check_ids(tokens: Iterable[int], vocabulary: int, tokenizer: PreTrainedTokenizerBase, origin: str) -> None:
    """Raises InputError that names `origin` if one of the tokens is an added one that the models do not know."""
    highest = max(tokens, default=-1)
    if highest >= vocabulary:
        raise InputError(
            f"{origin} contains the token {tokenizer.convert_ids_to_tokens(int(highest))!r} (id {highest}), and student and teacher share "
            f"only the ids below {vocabulary}; remove it there, or resize the embeddings of the smaller model"
        )


def highest_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values())


def _compare_tokens(student_tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase) -> None:
    student, teacher = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    padding = {
        token
        for token, known, other in ((student_tokenizer.pad_token, student, teacher), (teacher_tokenizer.pad_token, teacher, student))
        if token in known and token not in other and known[token] not in other.values()
    }
    tokens = (student.keys() | teacher.keys()) - padding
    differing = sorted(token for token in tokens if student.get(token) != teacher.get(token))
    if differing:
        example, total = differing[0], len(student.keys() | teacher.keys())
        raise InputError(
            f"the tokenizers of student and teacher differ in {len(differing)} of {total} tokens, for example {example!r} "
            f"{_id_in(student, example)} in the student's and {_id_in(teacher, example)} in the teacher's; {_ADVICE}"
        )


def _id_in(vocabulary: dict[str, int], token: str) -> str:
    return f"is {vocabulary[token]}" if token in vocabulary else "is missing"


def _compare_special(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    for name in ("eos_token", "bos_token"):
        in_student, in_teacher = getattr(student, name), getattr(teacher, name)
        if in_student != in_teacher:
            raise InputError(
                f"the tokenizers of student and teacher have the same tokens but another {name} ({in_student!r} and {in_teacher!r}), so "
                "one would not end where the other does; take both models from the instruct side or both from the base side of a family"
            )


def _compare_encodings(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    for probe in PROBES:
        student_ids, teacher_ids = (tokenizer.encode(probe, add_special_tokens=False) for tokenizer in (student, teacher))
        if student_ids != teacher_ids:
            raise InputError(
                f"the tokenizers of student and teacher have the same tokens but cut text differently, for example {probe!r} into "
                f"{len(student_ids)} and {len(teacher_ids)} tokens, first apart at token "
                f"{_first_difference(student_ids, teacher_ids)}; {_ADVICE}"
            )


def _first_difference(first: list[int], second: list[int]) -> int:
    differences = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differences, min(len(first), len(second)))
