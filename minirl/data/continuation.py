"""Continuation: tokenises a text that follows another, without the space that some tokenizers put before every text."""

from functools import cached_property

from transformers import PreTrainedTokenizerBase


class Continuation:
    """Tokenisers of Llama 2, Mistral and Phi-3 put a space before every text, as if a word began. In the middle of a conversation they must
    not: after `assistant\\n` the model says `yes`, and never ` yes`. Therefore such a text is tokenised behind the end of the text before.

    No token of the result belongs to the text before, as elsewhere. Other tokenizers see the text alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def encode(self, text: str, before: str) -> list[int]:
        """The tokens of `text`, which follows `before`."""
        _, length, tokens = self._behind(text, before)
        return tokens[length:]

    def offsets(self, text: str, before: str) -> list[tuple[int, int]]:
        """[start, end) in `text` of each token of `encode`."""
        anchor, length, _ = self._behind(text, before)
        encoding = self.tokenizer(anchor + text, add_special_tokens=False, return_offsets_mapping=True)
        return [(start - len(anchor), end - len(anchor)) for start, end in encoding["offset_mapping"][length:]]

    def _behind(self, text: str, before: str) -> tuple[str, int, list[int]]:
        """The end of `before`, its number of tokens, and its tokens with those of `text`; "" and 0 if `text` is tokenised alone."""
        if self._begins_with_space and before:
            anchor = before[max(0, *(before.rfind(token) for token in self.tokenizer.get_added_vocab())) :]
            head, tokens = self._tokens(anchor), self._tokens(anchor + text)
            if tokens[: len(head)] == head:  # otherwise a token crosses the border
                return anchor, len(head), tokens
        return "", 0, self._tokens(text)

    @cached_property
    def _begins_with_space(self) -> bool:
        alone = self._tokens("a")
        return bool(alone) and self._tokens("\na")[-len(alone) :] != alone

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)
