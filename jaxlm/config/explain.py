"""What pydantic found wrong, as one line: where it was written, what is wrong, what to write."""

import difflib
import re
from typing import Any

from pydantic import ValidationError

from jaxlm.config.keys import choose, documented, sections, suggestion
from jaxlm.config.reader import Document, Route
from jaxlm.config.schema import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.core.section import Section

_NAMED = r"([a-z_.]*[a-z_])="
_EXPECTED = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "tuple_type": "a list",
}
_RANGES = {
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
}


def explain(found: ValidationError, document: Document, source: str) -> ConfigError:
    """Turn the first error into a ConfigError: that which causes others first, a wrong type keys
    that it has not, a misspelt key one that is missing.
    """
    errors = sorted(found.errors(), key=_rank)
    error: Any = errors[0]
    route = _route(error, document.values)
    if error["type"] == "extra_forbidden":
        return _unknown(route, errors, document, source)
    if error["type"] == "value_error":
        return _refused(route, str(error["ctx"]["error"]), document, source)
    if error["type"] == "union_tag_invalid":
        route = (*route, "type")
    if error["type"] == "missing":
        return ConfigError(origin(route, document, source), _missing(route, document.values))
    return ConfigError(origin(route, document, source), _wrong(error, route))


def _rank(error: Any) -> int:
    if error["type"] == "literal_error" and error["loc"][-1] == "type":
        return 0
    return 1 if error["type"] == "extra_forbidden" else 2


def dotted(route: Route) -> str:
    """The key as a person writes it."""
    return ".".join(map(str, route))


def origin(route: Route, document: Document, source: str) -> str:
    """Where the value at `route`, or the nearest section around it, was written."""
    for end in range(len(route), 0, -1):
        if found := document.origins.get(route[:end]):
            return found
    return source


def _route(error: Any, values: Any) -> Route:
    """Pydantic's location without its marks for unions, which are not keys."""
    route: Route = ()
    for part in error["loc"]:
        inside = isinstance(values, dict) and part in values
        if inside or (isinstance(values, list) and isinstance(part, int)):
            route, values = (*route, part), values[part]
    return (*route, error["loc"][-1]) if error["type"] == "missing" else route


def _section(route: Route, values: Any) -> tuple[type[Section], list[type[Section]]]:
    """The section at `route` and the choices it was one of."""
    chosen: type[Section] = RunConfig
    parts: list[type[Section]] = [RunConfig]
    for part in route:
        values = values[part]
        if isinstance(part, str):
            parts = sections(chosen.model_fields[part].annotation)
        chosen = choose(parts, values)
    return chosen, parts


def _unknown(route: Route, errors: list[Any], document: Document, source: str) -> ConfigError:
    parent, key = route[:-1], dotted(route)
    section, choices = _section(parent, document.values)
    others = {name for choice in choices for name in choice.model_fields} - {*section.model_fields}
    if route[-1] in others:  # a key of another `type`
        kind = section.model_fields["type"].default
        routes = [_route(e, document.values) for e in errors if e["type"] == "extra_forbidden"]
        routes = [r for r in routes if r[:-1] == parent and r[-1] in others]
        chosen = origin((*parent, "type"), document, source)
        place = dotted(parent)
        if chosen.startswith("override"):
            names = ", ".join(f"{r[-1]} ({origin(r, document, source)})" for r in routes)
            return ConfigError(
                chosen,
                f"{kind} has no key {names}; remove it, or write the whole section: "
                f"'{place}={{type: {kind}}}'",
            )
        owners = [c.model_fields["type"].default for c in choices if route[-1] in c.model_fields]
        return ConfigError(
            origin(route, document, source),
            f"{place}.type={kind} has no key {key}; remove it, or use type={' or '.join(owners)}",
        )
    near = suggestion(key, list(section.model_fields))
    advice = f"did you mean {near}?" if near else f"the keys here are {_names(section)}"
    return ConfigError(origin(route, document, source), f"unknown key {key}; {advice}")


def _names(section: type[Section]) -> str:
    return ", ".join(section.model_fields)


def _refused(route: Route, what: str, document: Document, source: str) -> ConfigError:
    """A section's own check, which names keys as `key=value`: where one of them was written."""
    known, place = documented(), f"{dotted(route)}." if route else ""
    names = [name for name in re.findall(_NAMED, what) if place + name in known]
    routes = [(*route, *name.split(".")) for name in names]
    written = [document.origins[r] for r in routes if r in document.origins]
    written.sort(key=lambda where: not where.startswith("override"))
    if names:
        what = re.sub(_NAMED, lambda m: (place if m[1] in names else "") + m[0], what)
    elif route:
        what = f"{dotted(route)}: {what}"
    return ConfigError(written[0] if written else origin(route, document, source), what)


def _wrong(error: Any, route: Route) -> str:
    kind, key, value = error["type"], dotted(route), error["input"]
    context = error.get("ctx", {})
    if kind in _RANGES:
        return f"{key} must be {_RANGES[kind].format(**context)}, not {shown(value)}"
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context.get("expected") or " or ".join(context["expected_tags"].rsplit(", ", 1))
        value = context.get("tag", value)
        near = difflib.get_close_matches(str(value), re.findall(r"'(.+?)'", expected), n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        return f"{key} must be {expected}, not {shown(value)}{advice}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{key} must be a section of keys, not {shown(value)}{_instead(route, value)}"
    if kind == "too_short":
        return f"{key} is empty; write at least one"
    if kind == "string_pattern_mismatch":
        return f"{key} must match {context['pattern']}, not {shown(value)}"
    if kind in _EXPECTED:
        return f"{key} must be {_EXPECTED[kind]}, not {shown(value)}{_retype(kind, value)}"
    return f"{key}: {error['msg']}, not {shown(value)}"


def _missing(route: Route, values: Any) -> str:
    section, _ = _section(route[:-1], values)
    field = section.model_fields[str(route[-1])]
    section = next(iter(sections(field.annotation)), section)
    while field.annotation is section:  # a whole section is missing: its first needed key
        name, field = next((n, f) for n, f in section.model_fields.items() if f.is_required())
        route, section = (*route, name), next(iter(sections(field.annotation)), section)
    meaning = " ".join((field.description or "").split())
    return f"missing key {dotted(route)}; add it: {meaning}"


def _instead(route: Route, value: Any) -> str:
    field = RunConfig.model_fields.get(str(route[0])) if len(route) == 1 else None
    parts = sections(field.annotation) if field else []
    if not parts or "type" not in parts[0].model_fields:
        return ""
    kinds = [part.model_fields["type"].default for part in parts]
    near = difflib.get_close_matches(str(value), kinds, n=1, cutoff=0.0)
    return f"; write {route[0]}.type={near[0]}"


def _retype(kind: str, value: Any) -> str:
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if kind == "bool_type" and str(value).lower() in ("yes", "on", "1", "no", "off", "0"):
        return f"; write {'true' if str(value).lower() in ('yes', 'on', '1') else 'false'}"
    if kind == "string_type" and isinstance(value, int | float):
        return f"; put quotes around it: {str(value)!r}"
    return ""


def shown(value: Any) -> str:
    """A value as a message shows it, in at most 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
