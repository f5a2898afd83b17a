"""YAML 1.2's core rules over PyYAML, keeping the line of every key.

PyYAML speaks YAML 1.1, where `no` is a bool, `010` is 8, `12:30` is 750 and `1e-4` is text. Here
they are text, 10, text and a number. Two equal keys, tags and runaway aliases are errors.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from jaxlm.core.errors import ConfigError

Route = tuple[str | int, ...]
"""The keys and list positions that lead to a value."""

MOST_BYTES = 1_000_000
MOST_VALUES = 10_000
"""More values than any run has: past this, aliases are being multiplied."""

_CORE = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_TAG = "tag:yaml.org,2002:"


class _Resolver(BaseResolver):
    """What a plain word is, by YAML 1.2 (2021), section 10.3.2."""


for _kind, (_pattern, _first) in _CORE.items():
    _firsts = [*_first, ""] if _kind == "null" else list(_first)
    _Resolver.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _firsts)


class _Loader(Reader, Scanner, Parser, Composer, _Resolver):
    def __init__(self, text: str):
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Resolver.__init__(self)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            raise yaml.MarkedYAMLError(
                problem=f"found the tag {event.tag}", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes what this reader would not read back as text."""

    yaml_implicit_resolvers = _Resolver.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


class Document(NamedTuple):
    """Plain values, and where each was written: `configs/x.yaml:12` or `override 'a=b'`."""

    values: dict[str, Any]
    origins: dict[Route, str]


def read_file(path: Path, shown: str) -> Document:
    """Read one YAML file whose name in messages is `shown`. Raises ConfigError with its line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(shown, f"cannot be read: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise ConfigError(shown, f"has {len(data)} bytes; a configuration has at most {MOST_BYTES}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{shown}:{line}", "is not UTF-8; save the file as UTF-8") from None
    node = _compose(text, lambda line: f"{shown}:{line}")
    values, lines = _plain(node, lambda line: f"{shown}:{line}")
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{shown}:1", "is not `key: value` lines; write for example `steps: 100`")
    return Document(values, {route: f"{shown}:{line}" for route, line in lines.items()})


def read_value(text: str, where: str) -> Any:
    """Read the value of an override by the same rules. Globs such as `*.txt` need no quotes."""
    if text[:1] in tuple("*&!%@`|>"):
        return text
    return _plain(_compose(text, lambda _: where), lambda _: where)[0]


def write(values: Any) -> str:
    """YAML that `read_file` reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def _compose(text: str, where: Any) -> Any:
    try:
        return _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(where(line), _advice(error)) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow, which has no mark
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise ConfigError(where(line), str(error).splitlines()[0]) from None
    except RecursionError:
        raise ConfigError(where(1), "is nested too deep") from None


def _advice(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "is not YAML"
    for sign, advice in (
        ("'\\t'", "indent with spaces, not tabs"),
        ("undefined alias", "quote a value that starts with *"),
        ("expected alphabetic or numeric", "quote a value that starts with * or &"),
        (
            "mapping values are not allowed",
            "quote a value that holds `: `, or mend the indentation",
        ),
        ("the tag", "quote a value that starts with !"),
        ("expected ',' or", "close the bracket"),
        ("but found another document", "a file holds one document: remove the `---`"),
    ):
        if sign in problem:
            return f"{problem}; {advice}"
    return f"{problem}; mend the YAML"


def _plain(root: Any, where: Any) -> tuple[Any, dict[Route, int]]:
    """Turn a node into dicts, lists and scalars, and collect the line of each."""
    lines: dict[Route, int] = {}
    seen = 0

    def walk(node: Any, route: Route, above: tuple[int, ...]) -> Any:
        nonlocal seen
        seen += 1
        line = node.start_mark.line + 1
        if seen > MOST_VALUES or id(node) in above:
            raise ConfigError(where(line), "aliases grow without end; write the values out")
        lines.setdefault(route, line)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, where(line))
        above = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            return [walk(item, (*route, i), above) for i, item in enumerate(node.value)]
        result: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(where(line), "a key is one word; write `key: value`")
            if key.value in result:
                first = where(lines[(*route, key.value)])
                raise ConfigError(
                    where(line), f"key {key.value} stands twice, first at {first}; keep one"
                )
            lines[(*route, key.value)] = line
            result[key.value] = walk(value, (*route, key.value), above)
        return result

    return (None if root is None else walk(root, (), ())), lines


def _scalar(node: yaml.ScalarNode, where: str) -> Any:
    text, kind = node.value, node.tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if kind == "int":
        if len(text) > 100:
            raise ConfigError(
                where, f"{text[:10]}... has {len(text)} digits; write a smaller number"
            )
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    return text
