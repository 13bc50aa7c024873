"""Words of a text in any script, single characters where a script has no spaces, and the tokenizers of Rouge-L."""

import unicodedata

import regex
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

from minirl.config.evaluation import RougeTokenizer

# Characters of scripts that put no spaces between words. SA is Unicode's class of scripts that need a dictionary to find a word: Thai, Lao,
# Khmer, Burmese and others. Korean has spaces. Marks (vowel signs, accents) belong to the character before them.
_UNSPACED = r"[\p{Line_Break=SA}\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}\p{scx=Yiii}\p{scx=Java}\p{scx=Bali}]"
_IN_WORD = r"[\p{L}\p{M}\p{Nd}\p{Nl}]"
_SEPARATOR = regex.compile(rf"(?V1)[^{_IN_WORD}]+")
_PIECE = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*|[{_IN_WORD}--{_UNSPACED}]+")
_DIVIDED = regex.compile(rf"(?V1)[[{_UNSPACED}\p{{Tibetan}}]&&{_IN_WORD}]")  # white space alone does not divide it; Tibetan has a dot
_JOINERS = regex.compile(r"\p{Join_Control}")  # they shape letters inside a word of Persian or Hindi


def words_of(text: str) -> list[str]:
    """Words as white space divides them, punctuation included. Where scripts have no spaces, each character is one and punctuation none."""
    return [word for chunk in text.split() for word in (_pieces(chunk) if _DIVIDED.search(chunk) else [chunk])]


def rouge_tokenizer(name: RougeTokenizer) -> Tokenizer:
    """ "paper": the tokenizer of `rouge-score`, as in the reference code, which knows ASCII letters and digits only. "any_script": words of
    any script. Both lower the case and apply the Porter stemmer to ASCII words; on ASCII text they are the same.
    """
    return AnyScriptTokenizer() if name == "any_script" else DefaultTokenizer(use_stemmer=True)


class AnyScriptTokenizer(DefaultTokenizer):
    """Words in lower case and in one Unicode form, so that full-width letters and composed accents equal their other spellings."""

    def __init__(self) -> None:
        super().__init__(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        words = (unicodedata.normalize("NFKC", word).casefold() for word in _pieces(text))
        return [token for word in words for token in (super(AnyScriptTokenizer, self).tokenize(word) if word.isascii() else [word])]


def _pieces(text: str) -> list[str]:
    """Runs of letters and digits, and single characters of scripts without spaces. Symbols and punctuation are left out."""
    letters = _SEPARATOR.sub(" ", _JOINERS.sub("", text))  # before NFKC, which turns symbols into letters: \u2122, \u00bd
    return _PIECE.findall(unicodedata.normalize("NFKC", letters))
