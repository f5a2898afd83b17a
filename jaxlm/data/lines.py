"""Texts of a file, one after the other: lines of .txt, or records."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxlm.core.errors import DataError
from jaxlm.data import files
from jaxlm.data.records import Record, files_of, records, text

LINES = ".txt"
"""Files of which each line is a text."""


def read(
    path: str, of: Callable[[Any], Iterable[Record]] = records, *, blank: bool = True
) -> Iterator[tuple[str, str | dict[str, Any]]]:
    """(where it is from, a text or a record) of every line or record.

    of: reads a file of records. blank: leave blank lines of a text file out.

    Raises DataError with file and line.
    """
    if path == files.STDLIB:
        raise DataError(path, "is a source to train on, not a file of texts; name a file")
    for file in files_of(path, LINES):
        if files.suffix(file) != LINES:
            yield from of(file)
            continue
        for number, line in enumerate(files.text_of(file).removesuffix("\n").split("\n"), 1):
            if line.strip() or not blank:
                yield f"{file}:{number}", line.removesuffix("\r")


def texts(path: str, field: str) -> Iterator[tuple[str, str]]:
    """(where it is from, a text) of every line or record. field: the records' column.

    Raises DataError with file and line for what is no text or empty.
    """
    for where, found in read(path, blank=False):
        said = found if isinstance(found, str) else text(found, field, where)
        if not said.strip():
            what = "the line" if isinstance(found, str) else field
            raise DataError(where, f"{what} is empty; write a text, or leave it out")
        yield where, said
