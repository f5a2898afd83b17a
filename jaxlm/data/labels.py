"""What is written of labels, as names, and names as ids."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jaxlm.core.errors import DataError

SHOWN = 12
"""Most names of a label set that an error lists."""
LARGEST = 3.4028234e38
"""Of float32, in which numbers are learned."""
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?")
"""A name that counts something; one with zeros before it, such as 007, does not."""
YES = {"1": True, "true": True, "0": False, "false": False}


class LabelSet:
    """The labels of a run, in the order of their ids."""

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self._ids = {name: index for index, name in enumerate(self.names)}
        self._numbers = {
            n: i for i, name in enumerate(self.names) if (n := _number(name)) is not None
        }

    def id(self, name: str, where: str) -> int:
        """The id of a label by its name, however a number is written (1 and 1.0), or, where no
        name is a number, by its id.

        Raises DataError, with the set, for one that is not in it.
        """
        if (found := self._ids.get(name)) is not None:
            return found
        if self._numbers and (number := _number(name)) in self._numbers:
            return self._numbers[number]
        if not self._numbers and name.isdecimal() and int(name) < len(self.names):
            return int(name)
        known = ", ".join(self.names[:SHOWN]) + ", ..." * (len(self.names) > SHOWN)
        what = f"label {name!r} is none of the {len(self.names)} labels: {known}"
        raise DataError(where, f"{what}; correct it, or name it in objective.labels")


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Names sorted, numbers by what they count."""
    every = sorted(set(names))
    numbers = {name: _number(name) for name in every}
    plain = None in numbers.values()
    return tuple(every if plain else sorted(every, key=lambda name: numbers[name] or 0.0))


def name_of(value: Any, where: str) -> str:
    """The name of one label, a text or a number. Raises DataError for what is neither."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) or (isinstance(value, str) and value.strip()):
        return str(value).strip()
    said = "empty" if value in (None, "") else repr(value)[:40]
    raise DataError(where, f"the label is {said}; write one name or id")


def names_of(value: Any, where: str) -> list[str]:
    """The names of any number of labels: a list, its JSON, or a text cut at | or at commas.

    Raises DataError for what is none of these.
    """
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = _json(value, where)
    elif isinstance(value, str):
        parts = value.split("|" if "|" in value else ",")
        value = [part for part in map(str.strip, parts) if part]
    if not isinstance(value, list | tuple):
        return [name_of(value, where)]
    names = [name_of(each, where) for each in value]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(where, f"label {twice[0]!r} is there twice; write it once")
    return names


def items_of(value: Any, where: str, what: str, kind: type = object) -> list[Any]:
    """The words of a text, or its tags: a list, its JSON, or a text cut at white space, which may
    begin with a bracket that opens no list of this kind. Raises DataError for what is none.
    """
    if isinstance(value, str):
        try:
            listed = json.loads(value) if value.lstrip()[:1] == "[" else None
        except (ValueError, RecursionError):
            listed = None
        whole = isinstance(listed, list) and all(isinstance(each, kind) for each in listed)
        value = listed if whole else value.split()
    if not isinstance(value, list | tuple):
        said = type(value).__name__
        raise DataError(where, f"{what} is {said}; write a list, one for each word")
    return list(value)


def numbers_of(value: Any, where: str) -> list[float]:
    """One number or several. Raises DataError for what is none, or is not finite."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = _json(value, where)
    found = []
    if isinstance(value, list | tuple) and not value:
        raise DataError(where, "the label is an empty list; write a number such as 2.5")
    for each in value if isinstance(value, list | tuple) else [value]:
        try:
            number = float(each)
        except (TypeError, ValueError, OverflowError):
            number = LARGEST * 2
        if isinstance(each, bool) or not abs(number) <= LARGEST:  # of NaN neither is true
            said = repr(each)[:40]
            raise DataError(
                where, f"the label {said} is no number of float32; write one such as 2.5"
            )
        found.append(number)
    return found


def is_set(value: Any, where: str, name: str) -> bool:
    """What a column of a label says, 0 or 1. Raises DataError for what is neither."""
    try:
        return YES[name_of(value, where).lower()]
    except KeyError:
        raise DataError(where, f"{name} is {value!r}; write 0 or 1 for each label") from None


def is_flag(value: Any) -> bool:
    """Whether a value is one that `is_set` takes."""
    plain = isinstance(value, str | int | float)
    return plain and (str(value).lower() in YES or value in (0.0, 1.0))


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        what = f"{text[:40]!r} is no list that can be read"
        raise DataError(where, f'{what}; write ["a", "b"], a|b or a,b') from None


def _number(name: str) -> float | None:
    """What a name counts, if it is a number as people write labels: 2, -1, 0.5."""
    return float(name) if NUMBER.fullmatch(name) else None
