"""Whether an answer is right: the same text, what it parses to, a field of it, or a pattern."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jaxlm.core.errors import ConfigError, DataError

Right = Callable[[str, str | None], bool]
"""(an answer, what is expected or None) -> whether it is right."""
Parse = Callable[[str], Any]
"""Raises ValueError for a text that is not of the kind."""

KINDS = "exact, json, json:FIELD, xml, xml:TAG or regex:PATTERN"
WHERE = "samples.match"


def parse_json(text: str) -> Any:
    """JSON and nothing else: no NaN, no text around it, no key twice."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key stands there twice")
        return found

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_xml(text: str) -> ElementTree.Element:
    """One XML element and nothing else."""
    try:
        return ElementTree.fromstring(text.strip())
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None


def marker(match: str) -> tuple[Right, Parse | None]:
    """(whether an answer is right, how it is parsed) by a `samples.match`.

    exact: the expected text, but for space around it. json, xml: what it parses to is that of the
    expected text, where there is one. json:FIELD, xml:TAG: the value there, fields of fields by
    dots. regex: the first group, or all that is matched. Raises ConfigError for another kind.
    """
    kind, given, what = match.partition(":")
    if match == "exact":
        return _exact, None
    if kind == "regex" and what:
        return _of_pattern(what), None
    parse = {"json": parse_json, "xml": parse_xml}.get(kind)
    if parse is None or (given and not what):
        raise ConfigError(WHERE, f"{match!r} is no way to match; use {KINDS}")
    value = _json_value if kind == "json" else _xml_value
    return _of_parsed(parse, lambda parsed: value(parsed, what)), parse


def fits(path: str) -> Callable[[Any], bool]:
    """Whether a parsed answer fits the JSON schema in a file.

    Raises ConfigError where the jsonschema package is missing, DataError for what is no schema.
    """
    where = f"samples.json_schema: {path}"
    try:
        from jsonschema import SchemaError, validators
        from jsonschema_specifications import REGISTRY
    except ImportError:
        what = "needs the package jsonschema; pip install 'jaxlm[schema]'"
        raise ConfigError("samples.json_schema", what) from None
    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
        kind = validators.validator_for(schema)
        kind.check_schema(schema)
    except OSError as error:
        raise DataError(where, f"cannot be read: {error.strerror}") from None
    except SchemaError as error:
        raise DataError(where, f"is no JSON schema: {error.message}") from None
    except ValueError as error:
        raise DataError(where, f"not JSON: {error}") from None
    if odd := _unresolved(schema, REGISTRY):
        raise DataError(where, f"$ref {odd} names nothing in it; write that part into the file")
    valid = kind(schema, registry=REGISTRY).is_valid

    def fit(parsed: Any) -> bool:
        try:
            return valid(parsed)
        except RecursionError:  # nested too deeply, or a schema that is only itself
            return False

    return fit


def _unresolved(schema: Any, registry: Any) -> str | None:
    """A reference of a schema to what is neither in it nor another draft's: nothing is fetched."""
    from referencing import Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    if not isinstance(schema, dict):
        return None
    whole = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver, left = registry.with_resource("", whole).crawl().resolver(), [schema]
    while left:
        part = left.pop()
        left += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        named = part.get("$ref") if isinstance(part, dict) else None
        if isinstance(named, str) and (named.startswith("#") or "://" in named):
            try:
                resolver.lookup(named)
            except Unresolvable:
                return named
    return None


def _exact(answer: str, expected: str | None) -> bool:
    return answer.strip() == (expected or "").strip()


def _of_pattern(pattern: str) -> Right:
    try:
        search = re.compile(pattern, re.DOTALL).search
    except re.error as error:
        what = f"{pattern!r} is not a regular expression: {error}"
        raise ConfigError(WHERE, what) from None

    def value(text: str) -> str | None:
        found = search(text)
        return found and found[1 if found.re.groups else 0]

    def right(answer: str, expected: str | None) -> bool:
        given = value(answer)
        if given is None or expected is None:
            return given is not None
        wanted = value(expected)
        return given == (expected.strip() if wanted is None else wanted)

    return right


def _of_parsed(parse: Parse, value: Callable[[Any], Any]) -> Right:
    def right(answer: str, expected: str | None) -> bool:
        try:
            given = value(parse(answer))
        except (ValueError, LookupError):
            return False
        if expected is None:
            return True
        try:
            wanted = parse(expected)
        except ValueError:
            return str(given) == expected.strip()  # the value by itself, and no JSON
        try:
            return _same(given, value(wanted))
        except (ValueError, LookupError):
            return _same(given, wanted) or str(given) == expected.strip()

    return right


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON, where true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _json_value(parsed: Any, field: str) -> Any:
    for name in filter(None, field.split(".")):
        if isinstance(parsed, list):
            parsed = parsed[int(name)]
        elif isinstance(parsed, dict):
            parsed = parsed[name]
        else:
            raise LookupError(name)
    return parsed


def _xml_value(parsed: ElementTree.Element, tag: str) -> str:
    if not tag:
        return ElementTree.canonicalize(ElementTree.tostring(parsed, "unicode"), strip_text=True)
    found = parsed if parsed.tag == tag else parsed.find(f".//{tag}")
    if found is None:
        raise LookupError(tag)
    return "".join(found.itertext()).strip()
