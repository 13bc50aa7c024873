"""Turns of a conversation in a record: role and content, ShareGPT's turns and history pairs become Messages."""

import json
from collections.abc import Container
from typing import Any

from minirl.data.conversation import Message
from minirl.data.thoughts import THOUGHT_FIELDS
from minirl.data.values import check_nested, check_text, distinct, printable, printable_list, reason_of, type_name
from minirl.errors import InputError

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"} | {role: role for role in ROLES}
MESSAGE_FIELDS = {
    ("role", "content"): "The speaker (system, user, assistant or tool) and the text, or a list of parts of the type text.",
    ("from", "value"): "The same in ShareGPT's words: human, gpt and observation are user, assistant and tool.",
    ("weight",): "1 or 0: an assistant's turn of weight 0 stays in the prompt of later turns and is not learnt; at the end it is left out.",
    THOUGHT_FIELDS: "The thought before an answer. Passed to the chat template, which must render it.",
    ("tool_calls",): "Calls of tools by the assistant; `arguments` given as JSON text become an object. Passed to the chat template.",
    ("tool_call_id", "name"): "Which call a tool's answer belongs to, and who speaks. Passed to the chat template, which must render it.",
}
TEMPLATE_FIELDS = (*THOUGHT_FIELDS, "tool_calls", "tool_call_id", "name")


def parse_messages(value: Any, column: str, origin: str, ignored: Container[str] = ()) -> list[Message]:
    """A list of objects as Messages. ignored: fields that may be left out. Raises InputError for any other unknown field."""
    if not isinstance(value, list | tuple) or not value:
        amount = "an empty list" if isinstance(value, list | tuple) else type_name(value)
        raise InputError(f"{origin} has {amount} as {column}; it must be a list of role and content pairs with at least one user turn")
    return [_message(item, origin, ignored) for item in value]


def parse_history(value: Any, origin: str) -> list[Message]:
    """Pairs [user's text, assistant's text] as earlier turns."""
    if not isinstance(value, list | tuple) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        raise InputError(
            f"{origin} has a history that is no list of pairs [user's text, assistant's text]; give earlier turns in this form"
        )
    roles = ("user", "assistant")
    return [Message(role, check_text(text, "history", origin)) for pair in value for role, text in zip(roles, pair, strict=True)]


def check_turns(messages: list[Message], origin: str) -> None:
    """Raises InputError unless a user speaks first, at most after one system prompt."""
    roles = [message.role for message in messages]
    if "user" not in roles or "system" in roles[1:]:
        raise InputError(
            f"{origin} has the roles {printable_list(roles)}; messages need a user turn, and a system prompt can only come first"
        )
    first = roles[1] if roles[0] == "system" else roles[0]
    if first != "user":
        raise InputError(
            f"{origin} begins with {'an assistant' if first == 'assistant' else 'a tool'} turn; a user turn must come before it"
        )


def parse_tools(value: Any, origin: str) -> tuple[dict[str, Any], ...] | None:
    """The column `tools`: a list of JSON schemas, or its JSON text; None if it is empty."""
    if isinstance(value, str):
        value = _from_json(value, "tools", origin) if value.strip() else None
    tools = value if value or value not in (None, [], ()) else None
    if tools is not None and (not isinstance(tools, list | tuple) or not all(isinstance(tool, dict) for tool in tools)):
        raise InputError(f"{origin} has tools that are no list of objects; give the JSON schema of each tool, or leave the column out")
    check_nested(tools, "tools", origin)
    return tuple(tools) if tools else None


def _message(item: Any, origin: str, ignored: Container[str]) -> Message:
    fields = {name: value for name, value in item.items() if value is not None and name not in ignored} if isinstance(item, dict) else {}
    role_field, content_field = ("from", "value") if "from" in fields else ("role", "content")
    names = SHAREGPT_ROLES if role_field == "from" else ROLES
    role, content = fields.pop(role_field, None), fields.pop(content_field, None)
    weight = fields.pop("weight", None)
    if unknown := [name for name in fields if name not in TEMPLATE_FIELDS]:
        raise InputError(
            f"{origin} has a message with {printable_list(unknown)}, which is not used; remove it, or name it in data.ignore_columns"
        )
    if left_out := [name for name in (role_field, content_field) if isinstance(item, dict) and name in item and name in ignored]:
        raise InputError(f"data.ignore_columns names {printable_list(left_out)}, without which {origin} has no messages; take it out")
    if role is None or (content is None and not fields):
        raise InputError(f"{origin} has a message without {role_field} and {content_field}: {printable(item)}")
    if not isinstance(role, str) or role not in names:
        raise InputError(f"{origin} has the role {printable(repr(role))}; understood are {', '.join(names)}")
    role = SHAREGPT_ROLES[role]
    extra = {name: _template_field(name, value, origin) for name, value in fields.items()}
    return Message(role, _content(content, content_field, origin), extra, _weight(weight, role, origin))


def _content(value: Any, column: str, origin: str) -> str:
    """A text; a list of text parts is joined; null, which OpenAI's format has beside tool calls, is empty."""
    if value is None:
        return ""
    is_parts = isinstance(value, list | tuple) and all(isinstance(part, dict) and part.keys() == {"type", "text"} for part in value)
    if is_parts and value and all(part["type"] == "text" for part in value):
        return "".join(check_text(part["text"], column, origin) for part in value)
    return check_text(value, column, origin)


def _weight(value: Any, role: str, origin: str) -> float:
    if value is None:
        return 1.0
    if not isinstance(value, int | float) or value not in (0, 1):
        raise InputError(f"{origin} has a message of the weight {printable(repr(value))}; it must be 1 (learnt) or 0 (not learnt)")
    if value == 1 and role != "assistant":
        raise InputError(
            f"{origin} has a {role} message of weight 1, and only the assistant's turns can be learnt; set it to 0 or remove it"
        )
    return float(value)


def _template_field(name: str, value: Any, origin: str) -> Any:
    if name != "tool_calls":
        return check_text(value, name, origin)
    calls = list(value) if isinstance(value, list | tuple) else [value]
    check_nested(calls, name, origin)
    return [_tool_call(call, origin) for call in calls]


def _tool_call(call: Any, origin: str) -> dict[str, Any]:
    """The call with its arguments as an object, as chat templates expect them: one that gets a text would quote it a second time."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InputError(f"{origin} has a tool call without the name of a function: {printable(call)}")
    if not isinstance(function.get("arguments"), str):
        return call
    arguments = _from_json(function["arguments"], "the arguments of a tool call", origin)
    if not isinstance(arguments, dict):
        raise InputError(f"{origin} has a tool call whose arguments are no JSON object: {printable(function['arguments'])}")
    check_nested(arguments, "tool_calls", origin)
    function = function | {"arguments": arguments}
    return call | {"function": function} if "function" in call else function


def _from_json(text: str, field: str, origin: str) -> Any:
    """The value of a JSON text. Raises InputError, which names the field, if the text is no JSON."""
    try:
        return json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin} has {field} as text that is not valid JSON: {reason_of(error)}; correct it") from None
