"""Records of files: a dict for each line of .jsonl, row of .csv or .parquet, or item of .json.

A folder that Hugging Face's `save_to_disk` wrote is one more format. Each record comes with where
it is from, for errors.
"""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.core.errors import DataError
from jaxlm.data import files
from jaxlm.data.files import BOM, decoded, opened, reading, suffix, text_of

Record = tuple[str, dict[str, Any]]
"""(where it is from, its values by column)."""
csv.field_size_limit(2**31 - 1)  # documents are longer than the 131,072 letters of its default
SAVED = "state.json"
"""What marks a folder of `save_to_disk`."""


def records(file: Any, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """The records of one file, in order. columns: those that are needed, all by default.

    Raises DataError with file and line.
    """
    if isinstance(file, Path) and file.is_dir():
        return _saved(file)
    return READERS[suffix(file)](file, columns)


def files_of(path: str, *others: str) -> list[Any]:
    """The files of records at a path, in order, or the folder of `save_to_disk` that it is.

    others: suffixes of files that are no records and may be there too. Raises as files.find.
    """
    return [files.local(path)] if is_saved(path) else files.find(path, (*READERS, *others))


def is_saved(path: str) -> bool:
    """Whether it is a folder of `save_to_disk`."""
    return "://" not in path and (Path(path).expanduser() / SAVED).is_file()


SHOWN = 8
"""Most columns that an error lists."""


def there(record: Mapping[str, Any]) -> str:
    """The columns of a record, as errors list them; quoted where blanks around one hide."""
    names = [name if name.strip() == name and name else repr(name) for name in record]
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN) or "none"


def column(record: dict[str, Any], name: str, where: str) -> Any:
    """The value of a column. Raises DataError that names those that are there."""
    if name not in record:
        what = f"no column {name!r}; the columns are {there(record)}: name another"
        raise DataError(where, what)
    return record[name]


def text(record: dict[str, Any], name: str, where: str) -> str:
    """The text of a column. Raises DataError for what is no text."""
    value = column(record, name, where)
    if not isinstance(value, str):
        raise DataError(
            where, f"{name} is {type(value).__name__}, not a string; name a column of texts"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        wrong = f"character {error.start} of {name} is the lone surrogate U+{code:04X}"
        raise DataError(where, f"{wrong}; write the pair or leave it out") from None
    return value


def _jsonl(file: Any, _: Sequence[str] | None) -> Iterator[Record]:
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):  # at \n alone: JSON may hold the other breaks
            line = (line.removeprefix(BOM) if number == 1 else line).rstrip()
            if line:
                where = f"{file}:{number}"
                yield where, _record(decoded(line, file, number), where)


def _json(file: Any, _: Sequence[str] | None) -> Iterator[Record]:
    body = text_of(file)
    try:
        items = json.loads(body)
    except json.JSONDecodeError as error:
        wrong = f"not JSON: {error.msg.removesuffix(' at')}; write a list of objects"
        raise DataError(f"{file}:{error.lineno}:{error.colno}", wrong) from None
    except (ValueError, RecursionError) as error:
        raise DataError(str(file), f"not JSON that can be read: {error}") from None
    if not isinstance(items, list):
        raise DataError(
            str(file), f"{type(items).__name__} where a list of objects is meant; use .jsonl"
        )
    for number, item in enumerate(items, 1):
        where = f"{file}:item {number}"
        if not isinstance(item, dict):
            raise DataError(where, f"{type(item).__name__} where an object is meant")
        yield where, item


def _csv(file: Any, _: Sequence[str] | None) -> Iterator[Record]:
    return table(file)


def table(file: Any, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """The rows of a .csv or .tsv file. columns: their names, where the first line has none.

    In a .tsv a quote is a letter as any other: its standard (IANA, text/tab-separated-values) knows
    no quoting, and neither do GLUE's files.
    """
    rows: Any = csv.DictReader(_lines(file), columns, **_dialect(file))
    names: Sequence[str] = []
    with reading(file):
        names = rows.fieldnames or []
    _once(names, f"{file}:1")
    while True:
        with reading(f"{file}:{rows.line_num + 1}"):
            row: Any = next(rows, None)
        if row is None:
            return
        where = f"{file}:{rows.line_num}"
        if None in row or None in row.values():
            says = "has" if columns else "names"
            have = len(names) + len(row.get(None) or ()) - list(row.values()).count(None)
            wrong = f"{have} fields where the first line {says} {len(names)}"
            raise DataError(where, f"{wrong}; {_mend(file)}")
        yield where, row


def fields(file: Any) -> Iterator[list[str]]:
    """What the lines of a .csv or .tsv file hold, the first as the others."""
    rows: Any = csv.reader(_lines(file), **_dialect(file))
    while True:
        with reading(f"{file}:{rows.line_num + 1}"):
            row: list[str] | None = next(rows, None)
        if row is None:
            return
        if row:
            yield row


def _lines(file: Any) -> io.StringIO:
    """The text of a file, its line breaks as they are."""
    return io.StringIO(text_of(file), newline="")


def _dialect(file: Any) -> dict[str, Any]:
    unquoted = suffix(file) == ".tsv"
    quoting = csv.QUOTE_NONE if unquoted else csv.QUOTE_MINIMAL
    return {"delimiter": "\t" if unquoted else ",", "quoting": quoting, "strict": True}


def _mend(file: Any) -> str:
    """What to write where a text breaks its field."""
    unquoted = suffix(file) == ".tsv"
    return "write .csv where a text has a tab or a line break" if unquoted else "quote the text"


def _parquet(file: Any, columns: Sequence[str] | None) -> Iterator[Record]:
    import pyarrow.parquet

    with opened(file) as stream:
        table = pyarrow.parquet.ParquetFile(stream)
        names = table.schema_arrow.names
        _once(names, str(file))
        for name in columns or ():
            column(dict.fromkeys(names), name, str(file))
        batches = table.iter_batches(batch_size=1024, columns=columns)
        rows = itertools.chain.from_iterable(_rows(batch) for batch in batches)
        yield from _numbered(file, rows)


def _saved(folder: Path) -> Iterator[Record]:
    import pyarrow.ipc

    with reading(folder):
        state = json.loads((folder / SAVED).read_bytes())
        parts = [folder / part["filename"] for part in state["_data_files"]]
        if state.get("_indices_data_files"):
            wrong = "was saved with indices; write it again with flatten_indices().save_to_disk()"
            raise DataError(str(folder), wrong)

    def rows() -> Iterator[dict[str, Any]]:
        for part in parts:
            with opened(part) as stream, pyarrow.ipc.open_stream(stream) as batches:
                for batch in batches:
                    yield from _rows(batch)

    yield from _numbered(folder, rows())


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of an arrow batch, made one at a time."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    return ({name: c[row].as_py() for name, c in columns.items()} for row in range(batch.num_rows))


def _numbered(file: Any, rows: Iterator[dict[str, Any]]) -> Iterator[Record]:
    for number in itertools.count(1):
        where = f"{file}:row {number}"
        with reading(where):
            row = next(rows, None)
        if row is None:
            return
        yield where, row


def _once(names: Sequence[str], where: str) -> None:
    """Raise DataError where two columns have one name: only the last would be read."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(where, f"the column {twice[0]!r} is there twice; name each once")


READERS: dict[str, Callable[[Any, Sequence[str] | None], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
"""Suffix -> what reads such a file. A new format is a row here."""


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        wrong = f"not JSON: {error.msg.removesuffix(' at')}; write one object per line"
        raise DataError(f"{where}:{error.colno}", wrong) from None
    except (ValueError, RecursionError) as error:
        wrong = f"not JSON that can be read: {error}; write one flat object per line"
        raise DataError(where, wrong) from None
    if not isinstance(record, dict):
        raise DataError(
            where, f"{type(record).__name__} where an object is meant; write one per line"
        )
    return record
