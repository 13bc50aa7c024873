"""Templates (chat or Alpaca) that turn a conversation into segments of tokens, and the end tokens of a model.

Every segment is tokenised on its own, so that no token belongs to two turns. Tokenising prompt + response as one text and cutting it at
the prompt's length misplaces the border if the tokenizer merges across it (a response that begins with a newline).
"""

from typing import Any, Protocol

from transformers import GenerationConfig, PreTrainedTokenizerBase

from minirl.data.chat_template import ChatTemplate
from minirl.data.continuation import Continuation
from minirl.data.conversation import Conversation, question_and_answers
from minirl.data.generation_config import read_generation_config
from minirl.data.segment import Segment
from minirl.errors import InputError

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PREAMBLE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


class Template(Protocol):
    """Turns conversations into segments.

    The gold response is the last segment. Without one, the last segment ends with the text that starts an answer.
    """

    def __call__(self, conversation: Conversation) -> list[Segment]:
        """Of a conversation that is not one sequence, only the last turn is learnt."""

    def is_one_sequence(self, conversation: Conversation) -> bool:
        """Whether all learnt turns of a conversation can be learnt as one sequence. If not, each needs an example of its own."""


def make_template(
    name: str, tokenizer: PreTrainedTokenizerBase, end_tokens: tuple[int, ...], arguments: dict[str, Any] | None = None
) -> Template:
    """The template `chat` or `alpaca`. arguments: `data.template_arguments`.

    Raises InputError for `chat` if the tokenizer has no chat template or if that reads no such arguments.
    """
    if name == "alpaca":
        return AlpacaTemplate(tokenizer, end_tokens[0])
    if not tokenizer.chat_template:
        raise InputError("the tokenizer has no chat template, so data.template cannot be chat; set data.template: alpaca")
    return ChatTemplate(tokenizer, end_tokens, arguments)


def end_tokens(
    tokenizer: PreTrainedTokenizerBase, model: str | GenerationConfig | None = None, arguments: dict[str, Any] | None = None
) -> tuple[int, ...]:
    """All tokens that end a response, without duplicates, first the one that closes Alpaca responses.

    They are the tokenizer's end token, those of the generation config, and the special token that the chat template puts after an answer.
    model: a generation config, or a directory or hub name that may have one. arguments: `data.template_arguments`.
    Raises InputError if no end token exists.
    """
    config = read_generation_config(model) if isinstance(model, str) else model
    listed = config.eos_token_id if config else None
    listed = listed if isinstance(listed, list) else [listed]
    candidates = [tokenizer.eos_token_id, *listed, _chat_end_token(tokenizer, arguments)]
    ends = tuple(dict.fromkeys(int(token) for token in candidates if token is not None))
    if not ends:
        raise InputError("neither the tokenizer nor the generation config names an end token; set eos_token_id in generation_config.json")
    return ends


def _chat_end_token(tokenizer: PreTrainedTokenizerBase, arguments: dict[str, Any] | None) -> int | None:
    """The first special token after an answer, from rendering a probe; None if the template has none, or refuses the probe."""
    if not tokenizer.chat_template:
        return None
    probe = question_and_answers("a", ("probe",), "a probe of the chat template")
    try:
        text = ChatTemplate(tokenizer, (), arguments).render(probe.messages, probe, start_answer=False).text
    except InputError:  # the template may need what only the records have; if it is broken, the first record says so
        return None
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
    tail = tokenizer.encode(text.rpartition("probe")[2], add_special_tokens=False)
    return next((token for token in tail if token in special), None)


class AlpacaTemplate:
    """The Alpaca text as the reference tokenises it: no BOS, the end token after each response.

    A system prompt replaces the preamble. Each further turn repeats the blocks `### Instruction` and `### Response`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_token: int):
        self.end_token, self.end_text = end_token, tokenizer.convert_ids_to_tokens(end_token)
        self.encode = Continuation(tokenizer).encode

    def is_one_sequence(self, conversation: Conversation) -> bool:
        return True

    def __call__(self, conversation: Conversation) -> list[Segment]:
        messages = conversation.messages
        if conversation.tools or any(message.role == "tool" or message.extra for message in messages):
            raise InputError(
                f"{conversation.origin} has tools or extra fields of a message, which the Alpaca text cannot hold; set data.template: chat"
            )
        last_user = max(i for i, message in enumerate(messages) if message.role == "user")
        segments, text, before = [], PREAMBLE_WITH_INPUT if conversation.context else PREAMBLE, ""
        for i, message in enumerate(messages):
            if message.role == "system":
                text = message.content
            elif message.role == "user":
                text += f"\n\n### Instruction:\n{message.content}"
                text += f"\n\n### Input:\n{conversation.context}" if conversation.context and i == last_user else ""
            else:
                prompt = f"{text}\n\n### Response:\n"
                response = [*self.encode(message.content, prompt), self.end_token]
                segments.append(Segment.of(self.encode(prompt, before)))
                segments.append(Segment.of(response, [message.is_learnt] * len(response)))
                text, before = "", self.end_text
        return segments if conversation.has_response else [*segments, Segment.of(self.encode(f"{text}\n\n### Response:\n", before))]
