"""Texts of a file, one after the other: lines of .txt, a column of records."""

from collections.abc import Iterator

from jaxlm.core.errors import DataError
from jaxlm.data import files
from jaxlm.data.records import READERS, is_saved, records, text

LINES = ".txt"
"""Files of which each line is a text; empty ones are left out."""


def texts(path: str, field: str) -> Iterator[tuple[str, str]]:
    """(where it is from, a text) of every line or record. field: the records' column.

    Raises DataError with file and line for what is no text or empty.
    """
    found = [files.local(path)] if is_saved(path) else files.find(path, (*READERS, LINES))
    for file in found:
        if files.suffix(file) == LINES:
            for number, line in enumerate(files.text_of(file).split("\n"), 1):
                if line := line.removesuffix("\r"):
                    yield f"{file}:{number}", line
            continue
        for where, record in records(file):
            if not (said := text(record, field, where)):
                raise DataError(where, f"{field} is empty; write a text, or leave the record out")
            yield where, said
