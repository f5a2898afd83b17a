"""Documents from files: .txt, .jsonl and .parquet, compressed or not, here or on gs:// and s3://."""

import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from jaxlm.core.errors import DataError
from jaxlm.data import files
from jaxlm.data.files import STDLIB, reading, suffix, text_of
from jaxlm.data.records import records, text


class Source(Protocol):
    """What is read of a source in the configuration."""

    @property
    def path(self) -> str:
        """A file, a folder, a glob, or `stdlib`."""
        ...

    @property
    def weight(self) -> float | None:
        """Its share of the rows."""
        ...

    @property
    def field(self) -> str:
        """The column that holds the text."""
        ...


def find(path: str) -> list[Any]:
    """The files of a source with documents, sorted; see files.find."""
    return files.find(path, FORMATS)


def read(
    source: Source, counts: Counter[str] | None = None, chosen: list[Any] | None = None
) -> Iterator[str]:
    """The documents of a source in the order of its files; empty ones are left out.

    chosen: those of its files that are read, all by default.
    `counts` gets `documents`, `empty`, and `skipped`: files of the standard library that Python
    itself cannot decode. Raises DataError with file and line.
    """
    counts = Counter() if counts is None else counts
    for file in find(source.path) if chosen is None else chosen:
        try:
            for text in documents(file, source.field):
                counts["documents" if text else "empty"] += 1
                if text:
                    yield text
        except DataError:
            if source.path != STDLIB:
                raise
            counts["skipped"] += 1  # its own tests of wrong encodings


def documents(file: Any, field: str) -> Iterator[str]:
    """The documents of one file, in order. A .txt is one; a record's is in the column `field`."""
    return READERS[suffix(file)](file, field)


def _txt(file: Any, _: str) -> Iterator[str]:
    yield text_of(file)


def _python(file: Any, _: str) -> Iterator[str]:
    with reading(file), tokenize.open(file) as stream:
        text = stream.read()
    yield text


def _field(file: Any, field: str) -> Iterator[str]:
    return (text(record, field, where) for where, record in records(file, [field]))


READERS: dict[str, Callable[[Any, str], Iterator[str]]] = {
    ".txt": _txt,
    ".jsonl": _field,
    ".parquet": _field,
    ".py": _python,
}
"""Suffix -> what reads such a file, given the column of the text. A new format is a row here."""
FORMATS = tuple(name for name in READERS if name != ".py")  # Python only as the standard library
