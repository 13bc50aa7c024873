"""Reads the tokenizer of a model directory, and names the file at fault if that does not work."""

import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minirl.data.vocab import PROBES
from minirl.errors import InputError, first_line

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "generation_config.json")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json")


def read_tokenizer(path: str, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a model directory, tried on a few texts. Raises InputError, which names the config key `key`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        problem = _problem_in_use(tokenizer)
    except BaseException as error:  # a panic of the Rust library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        file, reason = _file_at_fault(Path(path), error)
        raise InputError(
            f"{key}: {path} has no tokenizer that transformers reads ({file}: {reason}); copy the tokenizer's files from where the model "
            "comes from, or save it again with the installed version of transformers"
        ) from None
    if not any((Path(path) / name).is_file() for name in VOCABULARIES) and not list(Path(path).glob("*.tiktoken")):
        problem = f"none of {', '.join(VOCABULARIES[:4])} is there"
    if problem:
        raise InputError(f"{key}: {path} has no tokenizer that can be used ({problem}); copy its files from where the model comes from")
    return tokenizer


def _problem_in_use(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """None if the tokenizer works. Encodes and decodes texts, because some faults show only then."""
    if not isinstance(tokenizer.chat_template, str | dict | None):
        return f"its chat template is {type(tokenizer.chat_template).__name__} instead of a text"
    if len(tokenizer.get_vocab()) < 2:
        return "its vocabulary is empty"
    for text in PROBES:
        ids = tokenizer.encode(text, add_special_tokens=False)
        tokenizer.decode(ids, skip_special_tokens=True)
        tokenizer([text], add_special_tokens=False, return_attention_mask=False, verbose=False)
    for token, id in ((tokenizer.eos_token, tokenizer.eos_token_id), (tokenizer.bos_token, tokenizer.bos_token_id)):
        if token is not None and not isinstance(id, int):
            return f"its special token {token!r} has no id"
    _ = tokenizer.all_special_ids, tokenizer.added_tokens_decoder
    return None


def _file_at_fault(directory: Path, error: BaseException) -> tuple[str, str]:
    """The name of the file that cannot be read, and the first line of the error that reading it alone raises."""
    for name in FILES:
        file = directory / name
        try:
            if file.is_file():
                json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as problem:
            return name, first_line(problem)
    if (directory / FILES[0]).is_file():
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_file(str(directory / FILES[0]))
        except BaseException as problem:
            if isinstance(problem, KeyboardInterrupt | SystemExit):
                raise
            return FILES[0], first_line(problem)
        return FILES[1], first_line(error)
    return "tokenizer.json is missing", first_line(error)
