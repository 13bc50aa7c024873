"""Checks of single values in data: texts, nested values and their names in messages to the user."""

from typing import Any

from minirl.errors import InputError, first_line

DEEPEST = 64  # levels of lists and objects in a value; deeper ones exhaust Python's stack in json and in templates
_TYPE_NAMES = {"NoneType": "null", "list": "a list", "tuple": "a list", "dict": "an object", "str": "a text", "bool": "a boolean"}


def check_text(value: Any, column: str, origin: str) -> str:
    """`value`, if it is a text of whole characters. Raises InputError otherwise."""
    if not isinstance(value, str):
        raise InputError(f"{origin} has {type_name(value)} in the column {printable(column)}, where a text belongs")
    if not value.isascii() and (half := _lone_surrogate(value)):
        raise InputError(
            f"{origin} has half a character ({half}, a surrogate without its other half) in the column {printable(column)}; the text was "
            "cut inside an emoji, so remove that half"
        )
    return value


def check_nested(value: Any, column: str, origin: str, depth: int = 0) -> None:
    """Raises InputError if a text anywhere in `value` has half a character, or if the value is nested deeper than DEEPEST."""
    if depth > DEEPEST:
        raise InputError(
            f"{origin} has a value in the column {printable(column)} that is nested more than {DEEPEST} levels deep; flatten it"
        )
    if isinstance(value, str):
        check_text(value, column, origin)
    elif isinstance(value, dict):
        for name, nested in value.items():
            check_nested(name, column, origin, depth + 1)
            check_nested(nested, column, origin, depth + 1)
    elif isinstance(value, list | tuple):
        for nested in value:
            check_nested(nested, column, origin, depth + 1)


def without_nulls(value: Any) -> Any:
    """`value` without the entries of objects that are null.

    Parquet and the hub give all objects of a column the same fields and fill those that a record lacks with null.
    """
    if isinstance(value, dict):
        return {name: without_nulls(nested) for name, nested in value.items() if nested is not None}
    return [without_nulls(nested) for nested in value] if isinstance(value, list | tuple) else value


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object, as the `object_pairs_hook` of `json.loads`. Raises ValueError if a name occurs twice, because Python would keep
    the last value and drop the others.
    """
    columns = dict(pairs)
    if len(columns) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice in one object")
    return columns


def type_name(value: Any) -> str:
    """The kind of a value in JSON's words ("a list"); a value that JSON lacks has its Python type ("a datetime")."""
    name = type(value).__name__
    return _TYPE_NAMES.get(name) or ("a number" if isinstance(value, int | float) else f"a {name}")


def printable(text: Any, limit: int = 80) -> str:
    """`text` for a message: cut at `limit` characters, in one line, and without characters that a terminal cannot print."""
    try:
        text = str(text)
    except Exception:  # str itself fails for a value that is nested too deeply
        text = type_name(text)
    shown = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text[:limit])
    return (shown or '""') + ("..." if len(text) > limit else "")


def printable_list(names: Any) -> str:
    """At most ten names, separated by commas."""
    names = list(names)
    return ", ".join(printable(name, 40) for name in names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def reason_of(error: Exception) -> str:
    """The first line of a library's message, for a sentence."""
    try:
        return printable(first_line(error), 200)
    except Exception:  # an error whose own text fails
        return type(error).__name__


def _lone_surrogate(text: str) -> str | None:
    """The first lone surrogate as an escape, such as "\\ud83d"."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ascii(text[error.start])[1:-1]
    return None
