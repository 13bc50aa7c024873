"""Templates (chat or Alpaca) that turn a conversation into segments of tokens, and the end tokens of a model.

Every segment is tokenised on its own, so that no token belongs to two turns. Tokenising prompt + response as one text and cutting it at
the prompt's length misplaces the border if the tokenizer merges across it (a response that begins with a newline).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jinja2
from transformers import GenerationConfig, PreTrainedTokenizerBase

from minirl.data.conversation import Conversation, Message
from minirl.errors import InputError

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PREAMBLE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)

Messages = Sequence[Message]


class Segment(NamedTuple):
    """A piece of a conversation. Its first `targets` tokens are learnt: the assistant's words and their end token. The others are not.

    The segment of an assistant's turn of weight 0 has no targets.
    """

    tokens: list[int]
    targets: int


Template = Callable[[Conversation], list[Segment]]


def make_template(name: str, tokenizer: PreTrainedTokenizerBase, end_tokens: tuple[int, ...]) -> Template:
    """The template `chat` or `alpaca`: a function from a conversation to its segments.

    The gold response is the last segment. Without one, the last segment ends with the text that starts an answer.
    Raises InputError for `chat` if the tokenizer has no chat template.
    """
    if name == "alpaca":
        return lambda conversation: _alpaca_segments(conversation, tokenizer, end_tokens[0])
    if not tokenizer.chat_template:
        raise InputError("the tokenizer has no chat template, so data.template cannot be chat; set data.template: alpaca")
    return lambda conversation: _chat_segments(conversation, tokenizer, end_tokens)


def end_tokens(tokenizer: PreTrainedTokenizerBase, model: str | GenerationConfig | None = None) -> tuple[int, ...]:
    """All tokens that end a response, without duplicates, first the one that closes Alpaca responses.

    They are the tokenizer's end token, those of the generation config, and the special token that the chat template puts after an answer.
    model: a generation config, or a directory or hub name that may have one. Raises InputError if no end token exists.
    """
    config = model if isinstance(model, GenerationConfig) else _generation_config(model)
    listed = config.eos_token_id if config else None
    listed = listed if isinstance(listed, list) else [listed]
    candidates = [tokenizer.eos_token_id, *listed, _chat_end_token(tokenizer)]
    ends = tuple(dict.fromkeys(int(token) for token in candidates if token is not None))
    if not ends:
        raise InputError("neither the tokenizer nor the generation config names an end token; set eos_token_id in generation_config.json")
    return ends


def _generation_config(model: str | None) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(model) if model else None
    except OSError:  # many models have no generation config
        return None


def _chat_end_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The first special token after an answer, from rendering a probe; None if the template has none."""
    if not tokenizer.chat_template:
        return None
    question = (Message("user", "a"),)
    before = _render(tokenizer, question, True, "a probe of the chat template")
    after = _render(tokenizer, (*question, Message("assistant", "probe")), False, "a probe of the chat template")
    tail = after.removeprefix(before).partition("probe")[2]
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
    return next((token for token in tokenizer.encode(tail, add_special_tokens=False) if token in special), None)


def _chat_segments(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, end_tokens: tuple[int, ...]) -> list[Segment]:
    messages, tools, origin = _with_context(conversation), conversation.tools, conversation.origin
    segments, rendered = [], ""

    def extend(text: str, response: Message | None) -> None:
        nonlocal rendered
        if not text.startswith(rendered):
            raise InputError(
                f"the chat template renders the beginning of {origin} differently when more turns follow, so it has no fixed "
                "prompt; use data.template: alpaca, or records of one turn"
            )
        tokens = tokenizer.encode(text.removeprefix(rendered), add_special_tokens=False)
        segments.append(Segment(tokens, _length_through_end(tokens, end_tokens) if response and response.is_learnt else 0))
        rendered = text

    for turn, message in enumerate(messages):
        if message.role == "assistant":
            extend(_render(tokenizer, messages[:turn], True, origin, tools), response=None)
            extend(_render(tokenizer, messages[: turn + 1], False, origin, tools), response=message)
    if not conversation.has_response:
        extend(_render(tokenizer, messages, True, origin, tools), response=None)
    return segments


def _length_through_end(tokens: list[int], end_tokens: tuple[int, ...]) -> int:
    for position, token in enumerate(tokens):
        if token in end_tokens:
            return position + 1
    raise InputError("the chat template closes an assistant's turn with none of the model's end tokens; use data.template: alpaca")


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, start_answer: bool, origin: str, tools: Sequence[dict[str, Any]] | None = None
) -> str:
    turns, tools = [message.as_dict() for message in messages], list(tools) if tools else None
    try:
        return tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=start_answer)
    except jinja2.TemplateError as error:
        raise InputError(f"the chat template refuses {origin}: {error}") from None


def _with_context(conversation: Conversation) -> Messages:
    """The messages with the context below the last user message."""
    if not conversation.context:
        return conversation.messages
    *_, last = [i for i, message in enumerate(conversation.messages) if message.role == "user"]
    return [
        replace(message, content=f"{message.content}\n\n{conversation.context}") if i == last else message
        for i, message in enumerate(conversation.messages)
    ]


def _alpaca_segments(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, end_token: int) -> list[Segment]:
    """The Alpaca text as the reference tokenises it: no BOS, the end token after each response.

    A system prompt replaces the preamble. Each further turn repeats the blocks `### Instruction` and `### Response`.
    """

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    messages = conversation.messages
    if conversation.tools or any(message.role == "tool" or message.extra for message in messages):
        raise InputError(
            f"{conversation.origin} has tools or extra fields of a message, which the Alpaca text cannot hold; set data.template: chat"
        )
    last_user = max(i for i, message in enumerate(messages) if message.role == "user")
    segments, text = [], PREAMBLE_WITH_INPUT if conversation.context else PREAMBLE
    for i, message in enumerate(messages):
        if message.role == "system":
            text = message.content
        elif message.role == "user":
            text += f"\n\n### Instruction:\n{message.content}"
            text += f"\n\n### Input:\n{conversation.context}" if conversation.context and i == last_user else ""
        else:
            response = [*encode(message.content), end_token]
            segments += [Segment(encode(f"{text}\n\n### Response:\n"), 0), Segment(response, len(response) if message.is_learnt else 0)]
            text = ""
    return segments if conversation.has_response else [*segments, Segment(encode(f"{text}\n\n### Response:\n"), 0)]
