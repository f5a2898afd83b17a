"""The base of every part of a configuration: frozen, strict, and aware of which keys were read."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

# id of a watched section -> the section, which keeps its id its own, and the fields read since
_read: dict[int, tuple["Section", set[str]]] = {}


class Section(BaseModel):
    """A part of the configuration.

    Unknown keys, wrong types, NaN and infinity are refused. Reading a field of a watched section is
    remembered, so that at the end of a run the keys that were set and never mattered can be named.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __getattribute__(self, name: str) -> Any:
        if (watched := _read.get(id(self))) is not None:
            watched[1].add(name)
        return super().__getattribute__(name)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values; what is read of it counts as read of this one."""
        copy = super().model_copy(update=update, deep=deep)
        if (watched := _read.get(id(self))) is not None:
            _read[id(copy)] = (copy, watched[1])
        return copy

    def watch(self) -> None:
        """Start to remember which fields are read, here and in every part below."""
        for _, part in self._parts():
            part.watch()
        _read[id(self)] = (self, set())

    def unread(self, prefix: str = "") -> list[str]:
        """Dotted keys that were set, not to their default, and were not read since `watch`."""
        parts = dict(self._parts())
        fields, values = type(self).model_fields, vars(self)
        # A part that came later, such as the architecture of `init`, is not watched.
        read = _read[id(self)][1] if id(self) in _read else set(fields)
        plain = {name for name in self.model_fields_set if values[name] != fields[name].default}
        plain -= {name.split(".")[0] for name in parts}
        found = [prefix + name for name in plain - read]
        for name, part in parts.items():
            found += part.unread(f"{prefix}{name}.")
        return sorted(found)

    def _parts(self) -> Iterator[tuple[str, "Section"]]:
        for name, value in vars(self).items():
            if isinstance(value, Section):
                yield name, value
            elif isinstance(value, tuple):
                for index, part in enumerate(value):
                    if isinstance(part, Section):
                        yield f"{name}.{index}", part
