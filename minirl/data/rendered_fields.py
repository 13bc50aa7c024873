"""RenderedFields: checks that the template renders tools and extra fields of messages, so that none vanishes."""

from dataclasses import replace

from minirl.data.conversation import Conversation, Message
from minirl.data.segment import Segment
from minirl.data.templates import Template
from minirl.errors import InputError


class RenderedFields:
    """Renders a record with and without each extra field, once for each pair of role and field, and compares the tokens.

    A template may leave a field out of some turns by design, such as the thoughts of earlier turns. Therefore a field that an assistant's
    turn has counts as rendered if it is rendered where that turn is the only answer.
    """

    def __init__(self, template: Template):
        self.template = template
        self._rendered: set[tuple[str, str]] = set()  # pairs of role and field that were found in the tokens

    def check(self, conversation: Conversation, segments: list[Segment]) -> None:
        """Raises InputError if the template renders `conversation`, whose segments are given, the same without one of its fields."""
        if conversation.tools and ("", "tools") not in self._rendered:
            self._note(("", "tools"), self._changes(replace(conversation, tools=None), segments), conversation)
        for message in conversation.messages:
            for name, value in message.extra.items():
                if (message.role, name) in self._rendered or not value:
                    continue
                rendered = self._changes(_without(conversation, message.role, name), segments) or self._renders_alone(message, name)
                self._note((message.role, name), rendered, conversation)

    def _note(self, pair: tuple[str, str], rendered: bool, conversation: Conversation) -> None:
        role, name = pair
        if not rendered:
            place = f"{name} of the {role}" if role else name
            raise InputError(
                f"{conversation.origin} has {place}, which the chat template does not render; use a model whose template does, or set "
                f"data.ignore_columns: [{name}]"
            )
        self._rendered.add(pair)

    def _renders_alone(self, message: Message, name: str) -> bool:
        if message.role != "assistant":
            return False
        short = Conversation((Message("user", "a"), replace(message, weight=1.0)))
        try:
            return self._changes(_without(short, message.role, name), self.template(short))
        except InputError:
            return False

    def _changes(self, conversation: Conversation, segments: list[Segment]) -> bool:
        """Whether the template gives other segments for `conversation`. A template that refuses it needs what is missing."""
        try:
            return self.template(conversation) != segments
        except InputError:
            return True


def _without(conversation: Conversation, role: str, name: str) -> Conversation:
    def stripped(message: Message) -> Message:
        return replace(message, extra={key: value for key, value in message.extra.items() if message.role != role or key != name})

    return replace(conversation, messages=tuple(stripped(message) for message in conversation.messages))
