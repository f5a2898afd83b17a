"""The kinds of values that keys hold, with their ranges."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

Count = Annotated[int, Field(ge=1, lt=2**31)]
Whole = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Stretch = Annotated[float, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def many(value: Any) -> Any:
    """One item where a list is meant is a list of one; YAML's lists become tuples."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return value if value is None else (value,)


def _compiles(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return patterns


def _said(value: Any) -> Any:
    """`{last_layers: N}` and `last_layers:N` as the one text that patterns have for it."""
    if isinstance(value, dict) and list(value) == ["last_layers"]:
        value = f"last_layers: {value['last_layers']}"
    if not isinstance(value, str) or not value.startswith("last_layers"):
        return value
    number = value.removeprefix("last_layers").lstrip(":= ")
    if not re.fullmatch("[1-9][0-9]{0,5}", number):
        raise ValueError(f"{value} names no number of layers; write last_layers: 2")
    return f"last_layers: {number}"


def _parts(value: Any) -> Any:
    found = many(value)
    return found if found is None else tuple(map(_said, found))


def _one_depth(patterns: tuple[str, ...]) -> tuple[str, ...]:
    depths = [pattern for pattern in patterns if pattern.startswith("last_layers")]
    if len(depths) > 1:
        raise ValueError(f"{' and '.join(depths)} stand side by side; keep one")
    return patterns


_Part = str | dict[Literal["last_layers"], Count]
Patterns = Annotated[
    tuple[str, ...],
    BeforeValidator(many, json_schema_input_type=str | tuple[str, ...]),
    AfterValidator(_compiles),
]

Trainable = Annotated[
    tuple[str, ...],
    BeforeValidator(_parts, json_schema_input_type=_Part | tuple[_Part, ...]),
    Field(min_length=1),
    AfterValidator(_compiles),
    AfterValidator(_one_depth),
]
