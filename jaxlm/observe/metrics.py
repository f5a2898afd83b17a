"""`metrics.jsonl`: one JSON object per line, and the rows that trackers get.

JSON has no NaN and no infinity, so a number that is not finite is written as the string "NaN",
"Infinity" or "-Infinity": what Python's float() and JavaScript's Number() both read. `read` turns
exactly these three back into floats.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from jaxlm.core.errors import DataError, StorageError

FILE = "metrics.jsonl"
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Row = dict[str, Any]


class Sink(Protocol):
    """What also gets the rows, such as jaxlm.observe.trackers.Tracker. No call raises."""

    def row(self, row: Row) -> None:
        """Take one row, at once."""

    def close(self, code: int) -> None:
        """Finish. code: the exit code of the run."""


class Metrics:
    """The rows of a run. Only the primary process writes; elsewhere every call does nothing.

    A full disk does not stop training: rows wait in memory, one warning is given, and the next row
    tries again.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        trackers: Sequence[Sink] = (),
        *,
        primary: bool,
        warn: Callable[[str], None] = print,
    ):
        self._path = Path(folder) / FILE
        self._trackers = tuple(trackers) if primary else ()
        self._primary = primary
        self._warn = warn
        self._waiting: list[bytes] = []
        self._warned = False

    def row(self, row: Row) -> None:
        """Append one row and hand it to the trackers.

        row: `step` (int) and names to numbers, strings, None, and lists of these; numpy and jax
        arrays become numbers or lists.
        """
        if not self._primary:
            return
        plain = {name: _plain(value) for name, value in row.items()}
        text = json.dumps({k: finite(v) for k, v in plain.items()}, allow_nan=False)
        self._waiting.append(text.encode() + b"\n")
        self._write()
        for tracker in self._trackers:
            tracker.row(plain)

    def sync(self) -> None:
        """Have the rows on the disk before a checkpoint that stands for their steps."""
        if not self._primary:
            return
        with suppress(OSError):  # rows that wait are said already
            handle = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def cut(self, step: int, *, again: bool = False) -> None:
        """Remove the rows of steps after `step` and a torn last line; call before the first row.

        again: the scores at `step` are made once more, and those that are there go too.
        The file is replaced in one move, so a crash leaves the old one or the new one. Raises
        StorageError when that is impossible: rows of a future that is gone must not stay.
        """
        if not self._primary:
            return
        if not self._path.exists():  # a run that is stopped before its first row has a report too
            self._write()
            return
        before = self._path.read_bytes()
        kept = [
            line
            for line, row in _rows(before)
            if row is not None and row["step"] <= step - (again and "loss" not in row)
        ]
        after = b"".join(line + b"\n" for line in kept)
        if after == before:
            return
        try:
            replace(self._path, after)
        except OSError as error:
            what = f"cannot be cut back to step {step} ({error.strerror}); free or unlock the disk"
            raise StorageError(str(self._path), what) from error

    def close(self, code: int = 0) -> None:
        """Write what still waits and close the trackers. code: the exit code of the run."""
        if self._waiting:
            self._write()
        if self._waiting:
            self._warn(f"{self._path}: {len(self._waiting)} rows could not be written and are lost")
        for tracker in self._trackers:
            tracker.close(code)

    def _write(self) -> None:
        content = b"".join(self._waiting)
        try:
            append(self._path, content)
        except OSError as error:
            if not self._warned:
                self._warn(f"{self._path}: {error.strerror}; rows wait in memory until it works")
            self._warned = True
        else:
            self._waiting.clear()
            self._warned = False


def append(path: Path, content: bytes) -> None:
    """Add whole lines to a file, all or none of them. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        start = file.tell()
        try:
            if file.write(content) != len(content):
                raise OSError(None, "written in part")
        except OSError:
            file.truncate(start)  # half a row now would be a broken line in the middle
            raise


def read(folder: str | os.PathLike[str]) -> list[Row]:
    """The rows of a run's folder, oldest first; a torn last line is left out.

    Raises DataError when there is no file, or when a line before the last is not a row.
    """
    path = Path(folder) / FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(str(path), "no such file; give the folder of a run") from None
    rows = [row for _, row in _rows(content)]
    if rows and rows[-1] is None:
        rows.pop()
    for number, row in enumerate(rows, 1):
        if row is None:
            raise DataError(f"{path}:{number}", "not a row of metrics; remove this line")
    return [{name: _number(value) for name, value in row.items()} for row in rows if row]


def replace(path: Path, content: bytes) -> None:
    """Give `path` this content in one move that survives a crash: it is old or new, never half."""
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _rows(content: bytes) -> list[tuple[bytes, Row | None]]:
    """Each line with its row; None for one that is torn or not a row."""
    *lines, torn = content.split(b"\n")
    pairs = [(line, _parse(line)) for line in lines]
    return [*pairs, (torn, None)] if torn else pairs


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def finite(value: Any) -> Any:
    """A value as strict JSON has it: NaN and infinities as texts."""
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
