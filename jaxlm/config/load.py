"""From a file and overrides to a run's configuration, and back to text."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import jaxlm
from jaxlm.config import reader
from jaxlm.config.explain import dotted, explain
from jaxlm.config.keys import choose, sections
from jaxlm.config.reader import Document
from jaxlm.config.schema import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.core.section import Section


def load(file: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration.

    `file` is a YAML file, a run's folder, or a preset's name; `overrides` are `key.path=value`, the
    value in YAML, lists by position (`data.train.0.weight=2`). Raises ConfigError with one line for
    the first thing that is wrong.
    """
    document, source = Document({}, {}), "command line"
    if file is None and not overrides:
        named = ", ".join(presets())
        raise ConfigError(source, f"no configuration; write a file's name or a preset's: {named}")
    if file is not None:
        path, source = _find(file)
        document = _with_base(path, source)
    for text in overrides:
        _override(document, text)
    values = _with_types(document.values, RunConfig)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as found:
        raise explain(found, document._replace(values=values), source) from None


def dump(config: RunConfig) -> str:
    """Every key of a configuration as YAML, itself a valid input."""
    return reader.write(_lists(config.model_dump()))


def changes(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """Return (key, old, new) for each key that differs; None where a side does not have the key."""
    before, after = flat(old), flat(new)
    keys = dict.fromkeys([*before, *after])
    return [(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]


def flat(config: RunConfig) -> dict[str, Any]:
    """Every value of a run by its dotted key."""
    return _flat(config.model_dump())


def schema() -> dict[str, Any]:
    """JSON schema of a configuration file, for completion and checks in an editor."""
    found = RunConfig.model_json_schema()
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "jaxlm"
    base = {"type": "string", "description": "Another file or preset whose keys this one adds to."}
    found["properties"] = {"extends": base, **found["properties"]}
    return _any_of(found)


def presets() -> dict[str, Path]:
    """The configurations that come with jaxlm, by name."""
    package = Path(jaxlm.__file__).parent
    for folder in (package / "presets", package.parent / "configs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def _find(file: str, beside: Path = Path()) -> tuple[Path, str]:
    """Return the file that is meant and its name for messages."""
    for path in (beside / file, beside / file / "config.yaml"):
        if os.path.isfile(path):  # Path.is_file raises on a name that is too long
            return path, str(path)
    named = presets()
    if file in named:
        path = named[file]
        return path, str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    folder = (beside / file).parent
    there = [str(path) for path in folder.glob("*.yaml")] if folder.is_dir() else []
    near = difflib.get_close_matches(file, [*named, *there], n=1)
    advice = f"did you mean {near[0]}?" if near else f"presets are {', '.join(named)}"
    raise ConfigError(file, f"is neither a file, a run nor a preset; {advice}")


def _with_base(path: Path, shown: str) -> Document:
    """Read a file and, below its own keys, those of the one file that it extends."""
    own = reader.read_file(path, shown)
    if "extends" not in own.values:
        return own
    base, where = own.values.pop("extends"), own.origins[("extends",)]
    if not isinstance(base, str):
        raise ConfigError(where, "extends must be the name of one file or preset")
    try:
        base_path, base_shown = _find(base, path.parent)
    except ConfigError as error:
        raise ConfigError(where, f"extends: {error}") from None
    below = reader.read_file(base_path, base_shown)
    if "extends" in below.values:
        raise ConfigError(
            below.origins[("extends",)],
            f"a file that {shown} extends may not extend another; write its keys out",
        )
    return Document(_merged(below.values, own.values), below.origins | own.origins)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` above `base`: sections merge key by key, all else is replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = _merged(base[key], value) if both else value
    return result


def _override(document: Document, text: str) -> None:
    """Set one `key.path=value`. A section given as a whole replaces the one that was there."""
    where = f"override {text!r}"
    key, equals, written = text.partition("=")
    names = key.strip().replace("-", "_").split(".")
    if not equals or not all(names):
        raise ConfigError(where, "is not key=value; write for example steps=100")
    value = reader.read_value(written, where)
    at: Any = document.values
    if names[0] == "data" and len(names) > 2 and names[2].isdigit():
        _list_sources(at.get("data"), names[1])
    route: reader.Route = ()
    for name in names[:-1]:
        step = _step(at, name, route, where)
        if at[step] is None:
            at[step] = {}
        at, route = at[step], (*route, step)
    step = _step(at, names[-1], route, where)
    at[step], route = value, (*route, step)
    for old in [old for old in document.origins if old[: len(route)] == route]:
        del document.origins[old]
    document.origins[route] = where


def _list_sources(data: Any, name: str) -> None:
    """Write `train: corpus.txt` as a list of sections, so that an override can reach into it."""
    value = data.get(name) if isinstance(data, dict) else None
    if isinstance(value, str | dict):
        value = [value]
    if isinstance(value, list):
        data[name] = [{"path": item} if isinstance(item, str) else item for item in value]


def _step(at: Any, name: str, route: reader.Route, where: str) -> Any:
    """The next key of a section or position in a list, made where it is new."""
    here = dotted(route)
    if isinstance(at, dict):
        at.setdefault(name, None)
        return name
    if not isinstance(at, list):
        raise ConfigError(where, f"{here} is {at!r}, not a section; replace it whole: {here}=...")
    if not re.fullmatch(r"[0-9]{1,6}", name) or int(name) > len(at):
        last = f"{here}.0 to {here}.{len(at)}"
        raise ConfigError(where, f"{here} is a list of {len(at)}; write {last}, not {here}.{name}")
    if int(name) == len(at):
        at.append(None)
    return int(name)


def _with_types(values: Any, section: type[Section]) -> Any:
    """Fill the `type` that a section with a choice of types left out with its default."""
    if not isinstance(values, dict):
        return values
    result = dict(values)
    for name, field in section.model_fields.items():
        parts, value = sections(field.annotation), values.get(name)
        if not parts or name not in values:
            continue
        if isinstance(value, list):
            result[name] = [_with_types(item, parts[0]) for item in value]
        elif isinstance(value, dict):
            if len(parts) > 1:
                value = {"type": field.default.type, **value}
            result[name] = _with_types(value, choose(parts, value))
    return result


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key. A list of sections counts by position, any other list is one leaf."""
    if isinstance(value, tuple) and value and all(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: _lists(value)}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def _any_of(node: Any) -> Any:
    """A section whose `type` is left out fits several choices, which `oneOf` would refuse."""
    if isinstance(node, dict):
        return {"anyOf" if k == "oneOf" else k: _any_of(v) for k, v in node.items()}
    return [_any_of(item) for item in node] if isinstance(node, list) else node
