"""Reads YAML 1.2 text: `off` and `010` mean what the key's type says, and a key that is given twice is refused."""

import re
from typing import Any

import yaml

from minirl.config.strict import PlainFloat, PlainInt, PlainWord
from minirl.errors import first_line


class YamlProblem(Exception):
    """The text cannot be used. The message continues a sentence that names the text: "is not valid YAML: ..."."""


class Yaml12Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2, with merge keys. Keys are texts. Plain numbers and words keep their characters for `StrictModel`."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise YamlProblem(f"has a list or a mapping as a key in line {key.start_mark.line + 1}; a key must be a text")
            line = key.start_mark.line + 1
            if key.value in lines and key.tag != "tag:yaml.org,2002:merge":
                raise YamlProblem(f"gives the key {key.value} twice, in line {lines[key.value]} and in line {line}; keep one of them")
            lines[key.value] = line
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


def _plain(loader: Yaml12Loader, node: yaml.ScalarNode, kind: type, value: float | str) -> Any:
    plain = kind(value)
    if kind is not PlainWord:
        plain.text = node.value
    return plain


def _integer(loader: Yaml12Loader, node: yaml.ScalarNode) -> Any:
    base = {"0o": 8, "0x": 16}.get(node.value[:2], 10)
    return _plain(loader, node, PlainInt, int(node.value, base))


def _number(loader: Yaml12Loader, node: yaml.ScalarNode) -> Any:
    return _plain(loader, node, PlainFloat, float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", node.value.lower())))


def _word(loader: Yaml12Loader, node: yaml.ScalarNode) -> Any:
    return _plain(loader, node, PlainWord, node.value)


# In this order: a number without fraction and exponent is an integer.
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("tag:yaml.org,2002:int", r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    ("tag:yaml.org,2002:float", r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
     list("-+.0123456789")),
    ("tag:yaml.org,2002:merge", r"^<<$", ["<"]),
    ("!word", r"^(?i:on|off|yes|no|y|n)$", list("oOyYnN")),
):  # fmt: skip
    Yaml12Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _integer)
Yaml12Loader.add_constructor("tag:yaml.org,2002:float", _number)
Yaml12Loader.add_constructor("!word", _word)


def read_yaml(text: str) -> Any:
    """The value of a YAML text. Raises YamlProblem."""
    try:
        return yaml.load(text, Yaml12Loader)
    except YamlProblem:
        raise
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise YamlProblem(f"is not valid YAML: {' '.join(str(error.problem or error.context).split())}{line}") from None
    except RecursionError:
        raise YamlProblem("is nested too deeply to be a config") from None
    except Exception as error:  # a tag such as `!!int` on a text, or a number of thousands of digits, raises what Python raises
        raise YamlProblem(f"is not valid YAML: {first_line(error)}") from None
