"""Documents from files: .txt, .jsonl and .parquet, compressed or not, here or on gs:// and s3://.

Everything that a file can do wrong becomes a DataError with the file and, where there is one, the
line.
"""

import difflib
import itertools
import json
import re
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from jaxlm.core.errors import DataError, JaxlmError
from jaxlm.data import compression

STDLIB = "stdlib"
"""The path that stands for the source of Python's own standard library."""
NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
EXTRAS = {"gs": "gcs", "s3": "s3"}
"""Scheme of a remote path -> the extra that reads it."""
MAGIC = re.compile(r"[*?\[]")
BOM = b"\xef\xbb\xbf"


class NotFoundError(DataError):
    """A path that leads to no file here."""


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
    """The files of a source, sorted: one file, those in a folder or of a glob, or the stdlib.

    Raises NotFoundError when the path leads nowhere, DataError for a folder without files, a format
    that is not read, and a scheme whose extra is not installed.
    """
    if path == STDLIB:
        return _stdlib()
    with reading(path):
        root = _path(path)
        if root.is_file():
            return [_checked(root)]
        if root.is_dir():
            inside = {file.relative_to(root).parts: file for file in _inside(root)}
            seen = sorted(parts for parts in inside if not any(p.startswith(".") for p in parts))
            if seen:
                return [inside[parts] for parts in seen]
            raise DataError(path, f"no {', '.join(FORMATS)} file in this folder; name another")
        if match := MAGIC.search(path):
            start = path.rfind("/", 0, match.start()) + 1
            found = sorted(_path(path[:start] or ".").glob(path[start:]))
            if files := [_checked(file) for file in found if not _is_local_folder(file)]:
                return files
            wrong = f"no file matches{_searched(path)}"
            raise NotFoundError(path, f"{wrong}; quote the glob against the shell")
        raise NotFoundError(path, f"no such file or folder{_searched(path)}; {_nearest(root)}")


def read(source: Source, counts: Counter[str] | None = None) -> Iterator[str]:
    """The documents of a source in the order of its files; empty ones are left out.

    `counts` gets `documents`, `empty`, and `skipped`: files of the standard library that Python
    itself cannot decode. Raises DataError with file and line.
    """
    counts = Counter() if counts is None else counts
    for file in find(source.path):
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


def suffix(file: Any) -> str:
    """The format: the last suffix under one of compression."""
    name = file.name.lower()
    for packed in compression.SUFFIXES:
        name = name.removesuffix(packed)
    return Path(name).suffix


@contextmanager
def reading(where: Any) -> Iterator[None]:
    """Turn what a file system or a library raises into a DataError of one line.

    Broad on purpose: each remote file system and each format has exceptions of its own.
    """
    try:
        yield
    except (JaxlmError, MemoryError):  # not the file's fault
        raise
    except ImportError as error:
        scheme = str(where).partition("://")[0]
        if scheme not in EXTRAS:
            raise
        extra = EXTRAS[scheme]
        raise DataError(
            str(where), f"needs an extra: in the checkout, pip install -e '.[{extra}]'"
        ) from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        wrong = f"cannot be read: {reason.splitlines()[0].rstrip('.')}"
        raise DataError(str(where), f"{wrong}; repair the file or name another") from error


def _path(path: str) -> Any:
    scheme, slashes, _ = path.partition("://")
    if not slashes:
        return Path(path).expanduser()
    if scheme not in EXTRAS:
        known = ", ".join(f"{name}://" for name in EXTRAS)
        raise DataError(path, f"{scheme}:// is not read; use a local path or one of {known}")
    from etils import epath

    return epath.Path(path)


def _searched(path: str) -> str:
    """Where a relative path was looked for; nothing for one that says so itself."""
    whole = "://" in path or Path(path).expanduser().is_absolute()
    return "" if whole else f" in {Path.cwd()}"


def _nearest(root: Any) -> str:
    """What was probably meant, or what may be written."""
    try:
        there = [entry.name for entry in root.parent.iterdir()]
    except OSError:
        there = []
    if near := difflib.get_close_matches(root.name, there, n=1):
        return f"did you mean {root.parent / near[0]}?"
    return "write its whole path, or `stdlib`"


def _checked(file: Any) -> Any:
    if suffix(file) not in FORMATS:
        formats = ", ".join(FORMATS)
        raise DataError(
            str(file), f"not a format that is read; use {formats}, or those with .gz or .zst"
        )
    return file


def _is_local_folder(file: Any) -> bool:
    return isinstance(file, Path) and file.is_dir()  # in a bucket, asking costs a call for each


def _inside(folder: Any) -> Iterator[Any]:
    """The files of a known format in a folder and those below; links are followed, but not up."""
    for entry in folder.iterdir():
        if suffix(entry) in FORMATS and not _is_local_folder(entry):
            yield entry
        elif entry.is_dir() and not (
            isinstance(entry, Path) and folder.resolve().is_relative_to(entry.resolve())
        ):
            yield from _inside(entry)


def _stdlib() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        file
        for file in root.rglob("*.py")
        if NOT_STDLIB.isdisjoint(file.parts[len(root.parts) : -1])
    ]
    if not files:
        raise DataError(STDLIB, f"no Python source in {root}; name files of your own")
    return sorted(files, key=lambda file: file.relative_to(root).parts)


@contextmanager
def _open(file: Any) -> Iterator[IO[bytes]]:
    with reading(file), compression.opened(file) as stream:
        yield stream


def _txt(file: Any, _: str) -> Iterator[str]:
    with _open(file) as stream:
        data = stream.read().removeprefix(BOM)
    yield _decoded(data, file, 1)


def _python(file: Any, _: str) -> Iterator[str]:
    with reading(file), tokenize.open(file) as stream:
        text = stream.read()
    yield text


def _jsonl(file: Any, field: str) -> Iterator[str]:
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):  # at \n alone: JSON may hold the other breaks
            line = (line.removeprefix(BOM) if number == 1 else line).rstrip()
            if line:
                where = f"{file}:{number}"
                yield _field(_record(_decoded(line, file, number), where), field, where)


def _parquet(file: Any, field: str) -> Iterator[str]:
    import pyarrow.parquet

    with _open(file) as stream:
        table = pyarrow.parquet.ParquetFile(stream)
        names = table.schema_arrow.names
        if field not in names:
            raise _missing(field, names, str(file))
        batches = table.iter_batches(batch_size=1024, columns=[field])
        values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
        for row, value in enumerate(values, 1):
            where = f"{file}:row {row}"
            with reading(where):
                text = value.as_py()
            yield _field({field: text}, field, where)


READERS: dict[str, Callable[[Any, str], Iterator[str]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".py": _python,
}
"""Suffix -> what reads such a file, given the column of the text. A new format is a row here."""
FORMATS = tuple(name for name in READERS if name != ".py")  # Python only as the standard library


def _decoded(data: bytes, file: Any, line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        column = error.start - data.rfind(b"\n", 0, error.start)
        wrong = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise DataError(f"{file}:{line}:{column}", wrong) from None


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


def _field(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise _missing(field, list(record), where)
    text = record[field]
    if not isinstance(text, str):
        raise DataError(
            where, f"{field} is {type(text).__name__}, not a string; name a text column as field"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        wrong = f"character {error.start} of {field} is the lone surrogate U+{code:04X}"
        raise DataError(where, f"{wrong}; write the pair or leave it out") from None
    return text


def _missing(field: str, names: list[str], where: str) -> DataError:
    found = ", ".join(names[:8]) or "none"
    return DataError(where, f"no column {field!r}; the columns are {found}: name one as field")
