"""The kinds of values that keys hold, with their ranges."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

Count = Annotated[int, Field(ge=1, lt=2**31)]
Whole = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
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


Patterns = Annotated[
    tuple[str, ...],
    BeforeValidator(many, json_schema_input_type=str | tuple[str, ...]),
    AfterValidator(_compiles),
]
