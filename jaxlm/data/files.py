"""Files, here and on gs:// and s3://: found by a path, and opened.

Everything that one can do wrong becomes a DataError with the file and, where there is one, the
line.
"""

import difflib
import re
import sysconfig
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jaxlm.core.errors import DataError, JaxlmError
from jaxlm.data import compression

STDLIB = "stdlib"
"""The path that stands for the source of Python's own standard library."""
NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
TOKENS = "tokens.json"
"""What marks a folder that `jaxlm data tokenize` made: it holds no texts; see corpus.py."""
EXTRAS = {"gs": "gcs", "s3": "s3"}
"""Scheme of a remote path -> the extra that reads it."""
MAGIC = re.compile(r"[*?\[]")
BOM = b"\xef\xbb\xbf"


class NotFoundError(DataError):
    """A path that leads to no file here."""


def find(path: str, formats: Collection[str]) -> list[Any]:
    """The files of a source, sorted: one file, those in a folder or of a glob, or the stdlib.

    formats: the suffixes that are read, under one of compression.
    Raises NotFoundError when the path leads nowhere, DataError for a folder without files, a format
    that is not read, and a scheme whose extra is not installed.
    """
    if path == STDLIB:
        return _stdlib()
    with reading(path):
        root = _path(path)
        if root.is_file() or _is_pipe(root):
            return [_checked(root, formats)]
        if is_tokens(path):
            advice = f"where its tokens are meant, set tokenizer.path={root / 'tokenizer'}"
            raise DataError(path, f"holds tokens of documents, not texts; name texts, or {advice}")
        if root.is_dir():
            inside = {file.relative_to(root).parts: file for file in _inside(root, formats)}
            seen = sorted(parts for parts in inside if not any(p.startswith(".") for p in parts))
            if seen:
                return [inside[parts] for parts in seen]
            raise DataError(path, f"no {', '.join(formats)} file in this folder; name another")
        if match := MAGIC.search(path):
            start = path.rfind("/", 0, match.start()) + 1
            found = sorted(_path(path[:start] or ".").glob(path[start:]))
            if files := [_checked(file, formats) for file in found if not _is_local_folder(file)]:
                return files
            wrong = f"no file matches{_searched(path)}"
            raise NotFoundError(path, f"{wrong}; quote the glob against the shell")
        raise NotFoundError(path, f"no such file or folder{_searched(path)}; {_nearest(root)}")


def local(path: str) -> Path:
    """A path on this machine."""
    return Path(path).expanduser()


def is_tokens(path: str) -> bool:
    """Whether it is a folder of tokens, which `jaxlm data tokenize` made. Raises DataError."""
    with reading(path):
        return "://" not in path and (local(path) / TOKENS).is_file()


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


@contextmanager
def opened(file: Any) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed, what goes wrong as in `reading`."""
    with reading(file), compression.opened(file) as stream:
        yield stream


def text_of(file: Any) -> str:
    """All that a file says, without a mark of its byte order. Raises DataError."""
    with opened(file) as stream:
        data = stream.read()
    return decoded(data.removeprefix(BOM), file, 1)


def decoded(data: bytes, file: Any, line: int) -> str:
    """The text of bytes that begin at `line` of a file. Raises DataError for what is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        column = error.start - data.rfind(b"\n", 0, error.start)
        wrong = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise DataError(f"{file}:{line}:{column}", wrong) from None


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


def _checked(file: Any, formats: Collection[str]) -> Any:
    if suffix(file) not in formats:
        known = ", ".join(formats)
        raise DataError(
            str(file), f"not a format that is read; use {known}, or those with .gz or .zst"
        )
    if _is_pipe(file):
        raise DataError(str(file), "is a pipe, which may never end; write its texts to a file")
    return file


def _is_pipe(file: Any) -> bool:
    return isinstance(file, Path) and file.is_fifo()


def _is_local_folder(file: Any) -> bool:
    return isinstance(file, Path) and file.is_dir()  # in a bucket, asking costs a call for each


def _inside(folder: Any, formats: Collection[str]) -> Iterator[Any]:
    """The files of a known format in a folder and those below; links are followed, but not up."""
    with reading(folder):
        entries = list(folder.iterdir())
    for entry in entries:
        if suffix(entry) in formats and not _is_local_folder(entry):
            yield _checked(entry, formats)
        elif entry.is_dir() and not (
            isinstance(entry, Path) and folder.resolve().is_relative_to(entry.resolve())
        ):
            yield from _inside(entry, formats)


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
