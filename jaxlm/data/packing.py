"""Windows over a stream of documents: each a pure function of its index.

Window i covers the tokens from i * L to i * L + L, so that every token but the stream's first is a
target once. Documents in one window are segments that do not see each other.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jaxlm.core.errors import DataError
from jaxlm.data.cache import Tokens

Batch = dict[str, np.ndarray]
NAMES = ("tokens", "targets", "weights", "segments", "positions")
"""The arrays [B, L] of rows that are continued."""
READ = ("tokens", "segments", "positions")
"""Those of what is read, by which texts in a row are told apart."""


class Rows(Protocol):
    """Rows of one source, each a pure function of its index and, where it has noise, of when it is
    drawn.
    """

    @property
    def count(self) -> int:
        """How many."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens in all of them."""
        ...

    @property
    def digest(self) -> str:
        """Hash of everything that they depend on, but their length."""
        ...

    def widths(self, index: np.ndarray) -> dict[str, int]:
        """Columns that the rows `index` [n] need, by array; of arrays without an entry all."""
        ...

    def take(self, index: np.ndarray, drawn: np.ndarray) -> Batch:
        """The rows `index` [B], which may be none, as arrays [B, n], whole.

        drawn [B] int64: the number of each in all that is ever drawn, so that another pass has
        other noise.
        """
        ...


@dataclass(frozen=True)
class Windows:
    """The windows over a stream, as rows."""

    stream: Tokens
    length: int
    vocab: int
    pad: int

    @property
    def count(self) -> int:
        """How many; the last one may be partly filled."""
        return count(self.stream.ids.size, self.length)

    @property
    def tokens(self) -> int:
        """Of the stream."""
        return self.stream.ids.size

    @property
    def digest(self) -> str:
        """Of the stream."""
        return self.stream.digest

    def widths(self, index: np.ndarray) -> dict[str, int]:
        """None: windows are full."""
        return {}

    def take(self, index: np.ndarray, drawn: np.ndarray) -> Batch:
        """The windows `index` [B]; see `windows`."""
        return windows(self.stream, index, self.length, vocab=self.vocab, pad=self.pad)


def count(tokens: int, length: int) -> int:
    """Windows in a stream of so many tokens; the last one may be partly filled."""
    return max(0, -(-(tokens - 1) // length))


def windows(stream: Tokens, rows: np.ndarray, length: int, *, vocab: int, pad: int) -> Batch:
    """The windows `rows` [B] of a stream, L = length.

    tokens, targets int32 [B, L], `pad` beyond the stream; weights float32 [B, L], 0 where the
    target belongs to another document or to none; segments int32 [B, L], from 1 for the first
    document of the row, 0 beyond the stream; positions int32 [B, L], from 0 in each segment. Raises
    DataError for an id that is not under `vocab`, which a model would clamp in silence.
    """
    at = rows.astype(np.int64)[:, None] * length + np.arange(length + 1)
    total = stream.ids.size
    inside = at < total
    ids = stream.ids[np.minimum(at, total - 1)].astype(np.int32)
    if (ids >= vocab).any():
        first = int(at[ids >= vocab][0])
        wrong = f"token {first} is id {stream.ids[first]}, outside the vocabulary of {vocab} ids"
        raise DataError(stream.where, f"{wrong}; remove this folder, and it is made again")
    ids = np.where(inside, ids, pad)
    document = np.searchsorted(stream.offsets, at, side="right") - 1
    segments = np.where(inside, document - document[:, :1] + 1, 0)[:, :-1]
    starts = np.maximum(stream.offsets[np.minimum(document, stream.offsets.size - 2)], at[:, :1])
    same = inside[:, 1:] & (document[:, 1:] == document[:, :-1])
    return {
        "tokens": ids[:, :-1].astype(np.int32),
        "targets": ids[:, 1:].astype(np.int32),
        "weights": same.astype(np.float32),
        "segments": segments.astype(np.int32),
        "positions": np.where(inside, at - starts, 0)[:, :-1].astype(np.int32),
    }


def blank(size: int, length: int, pad: int) -> Batch:
    """`size` rows of filler: nothing to see and nothing to learn."""
    shape = (size, length)
    return {
        "tokens": np.full(shape, pad, np.int32),
        "targets": np.full(shape, pad, np.int32),
        "weights": np.zeros(shape, np.float32),
        "segments": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
    }


def lay(
    batch: Batch,
    row: int,
    start: int,
    segment: int,
    ids: np.ndarray | list[int],
    names: tuple[str, ...] = READ,
) -> slice:
    """Write a text of ids [n] into a row from column `start` on, as a segment of its own with
    positions from 0. Returns its columns.

    names: the arrays of ids, segments and positions.
    """
    at = slice(start, start + len(ids))
    for name, values in zip(names, (ids, segment, np.arange(len(ids))), strict=True):
        batch[name][row, at] = values
    return at
