"""The files of a Hugging Face folder beside the tokenizer's model: what they name."""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from jaxlm.core.errors import DataError

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
"""Both name special tokens."""
GENERATION = "generation_config.json"
TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
"""A file for the chat template named "default", a folder of files for others."""
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
LISTS = ("additional_special_tokens", "extra_special_tokens")
"""Keys with several special tokens."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when there is no file. Raises DataError for what is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(str(path), f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(str(path), "an object is meant, with keys such as eos_token")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json and special_tokens_map.json in one.

    The second wins, as in transformers, unless the first lists the added tokens itself.
    """
    config, special = read_json(folder / CONFIG), read_json(folder / SPECIAL)
    return special | config if "added_tokens_decoder" in config else config | special


def named(config: dict[str, Any], key: str) -> str | None:
    """The special token under `key`, such as eos_token: a string, or an object with its content."""
    return _content(config.get(key))


def special(config: dict[str, Any]) -> dict[str, str]:
    """Every special token that has a key, such as bos_token, by its key."""
    groups = [config[key] for key in LISTS if isinstance(config.get(key), dict)]
    given = {key: value for group in [*groups, config] for key, value in group.items()}
    found = {key: named(given, key) for key in given if str(key).endswith("_token")}
    return {key: name for key, name in found.items() if name is not None}


def specials(config: dict[str, Any]) -> list[str]:
    """The names of all special tokens, with and without a key of their own."""
    lists = [config[key] for key in LISTS if isinstance(config.get(key), list | dict)]
    several = [each.values() if isinstance(each, dict) else each for each in lists]
    names = [_content(value) for each in several for value in each]
    return [*special(config).values(), *(name for name in names if name is not None)]


def _content(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def without(config: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The configuration without what it says of some special tokens."""
    kept = {key: value for key, value in config.items() if _content(value) not in names}
    for key in (*LISTS, "added_tokens_decoder"):
        if isinstance(several := kept.get(key), list):
            kept[key] = [each for each in several if _content(each) not in names]
        elif isinstance(several, dict):
            kept[key] = {k: each for k, each in several.items() if _content(each) not in names}
    return kept


def added(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """The tokens that were added to a vocabulary, by id, with how they are found in a text.

    added_tokens_decoder of the configuration, or else added_tokens.json.
    """
    if "added_tokens_decoder" in config:
        return listed(config, str(folder / CONFIG))
    path, special = folder / "added_tokens.json", set(specials(config))
    try:
        found = {int(index): name for name, index in read_json(path).items()}
    except (TypeError, ValueError):
        raise DataError(str(path), "ids by token are meant") from None
    return {
        index: AddedToken(name, special=name in special, normalized=name not in special)
        for index, name in sorted(found.items())
    }


def listed(config: dict[str, Any], where: str = CONFIG) -> dict[int, AddedToken]:
    """added_tokens_decoder: by id. Raises DataError when it is not made of tokens."""
    found = config.get("added_tokens_decoder") or {}
    try:
        tokens = {
            int(index): AddedToken(
                token["content"], **{flag: bool(token[flag]) for flag in FLAGS if flag in token}
            )
            for index, token in found.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(where, "added_tokens_decoder: {id: {content: ...}} is meant") from None
    return dict(sorted(tokens.items()))


def other_ends(folder: Path, eos: int) -> tuple[int, ...]:
    """Ids besides eos that end generation: of generation_config.json, or else of config.json."""
    for name in (GENERATION, "config.json"):
        found = read_json(folder / name).get("eos_token_id")
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(type(index) is int and index >= 0 for index in ids):
            raise DataError(
                str(folder / name), f"eos_token_id {found!r}: an id or a list of ids is meant"
            )
        return tuple(dict.fromkeys(index for index in ids if index != eos))
    return ()


def rows(folder: Path) -> int | None:
    """vocab_size of config.json: the ids that the model beside the tokenizer knows."""
    found = read_json(folder / "config.json").get("vocab_size")
    return found if type(found) is int else None


def read_templates(folder: Path, config: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Chat templates by name, each (the file it is from, its source). Later places win."""
    found: dict[str, tuple[str, str]] = {}
    for path, values in (
        (folder / "chat_template.json", read_json(folder / "chat_template.json")),
        (folder / CONFIG, config),
    ):
        for name, source in _templates(values.get("chat_template"), str(path)).items():
            found[name] = (str(path), source)
    for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja")):
        found[path.stem] = (str(path), _source(path))
    if (path := folder / TEMPLATE).is_file():
        found["default"] = (str(path), _source(path))
    return found


def _templates(value: Any, where: str) -> dict[str, str]:
    """A string, or a list of {name, template}, or a dict of templates."""
    wrong = "chat_template: a string or a list of {name, template} is meant"
    if value is None:
        return {}
    try:
        if isinstance(value, list):
            value = {each["name"]: each["template"] for each in value}
    except (KeyError, TypeError):
        raise DataError(where, wrong) from None
    templates = value if isinstance(value, dict) else {"default": value}
    if not all(isinstance(source, str) for source in templates.values()):
        raise DataError(where, wrong)
    if unsafe := [name for name in templates if not re.fullmatch(r"\w[\w.-]*", str(name))]:
        raise DataError(where, f"chat_template: {unsafe[0]!r} is not a name for a template")
    return templates


def _source(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise DataError(str(path), f"not UTF-8: {error}") from None


def write(
    folder: Path,
    config: dict[str, Any],
    templates: dict[str, tuple[str, str]],
    ends: tuple[int, ...],
) -> None:
    """What `read_config`, `read_templates` and `other_ends` find there again."""
    kept = {key: value for key, value in config.items() if key != "auto_map"}  # its code stays
    _write_json(folder / CONFIG, kept)
    keys = [key for key in (*special(config), *LISTS) if key in config]
    _write_json(folder / SPECIAL, {key: _bare(config[key]) for key in keys})
    for name, (_, source) in templates.items():
        path = folder / (TEMPLATE if name == "default" else f"{MORE_TEMPLATES}/{name}.jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, encoding="utf-8")
    if len(ends) > 1:
        path = folder / GENERATION
        _write_json(path, read_json(path) | {"eos_token_id": list(ends)})


def _bare(value: Any) -> Any:
    """Without what only tokenizer_config.json says of a token."""
    if isinstance(value, list):
        return [_bare(each) for each in value]
    if isinstance(value, dict):
        return {key: each for key, each in value.items() if key not in ("__type", "special")}
    return value


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
