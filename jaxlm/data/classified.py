"""Rows of labeled texts: several in a row, a segment each, or one; what is told of each beside."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jaxlm.data.columns import Problem
from jaxlm.data.packing import READ, Batch, lay
from jaxlm.data.sides import SOURCE


class Reads(NamedTuple):
    """What a model reads besides tokens."""

    types: bool = False
    """Token types."""
    start: int | None = None
    """Of an encoder-decoder, which reads the text as its source and once more behind this id."""


class Answered(NamedTuple):
    """One text: its ids, their types, and what is told of it."""

    ids: np.ndarray
    """int32 [T]."""
    types: np.ndarray
    """int32 [T]."""
    answer: np.ndarray
    """int32 [1], the label; float32 [C], of each label 1 or 0, or numbers; of words int32 [T], the
    label at each one's first token, else -1."""


@dataclass(frozen=True)
class Classified:
    """Labeled texts as rows of `length`: a segment each, positions from 0."""

    texts: tuple[Answered, ...]
    plan: tuple[tuple[int, ...], ...]
    """Of each row, which texts it holds."""
    length: int
    pad: int
    problem: Problem
    width: int
    """Numbers that are told of a text of several labels, or of a regression; else 1."""
    reads: Reads

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.plan)

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(text.ids.size for text in self.texts)

    @property
    def digest(self) -> str:
        """Of every text, of the rows they are in, and of what is read."""
        found = hashlib.sha256(repr((self.plan, self.problem, self.width, self.reads)).encode())
        for text in self.texts:
            found.update(text.ids.tobytes() + text.types.tobytes() + text.answer.tobytes())
        return found.hexdigest()

    @cached_property
    def most(self) -> int:
        """K, the most texts that a row holds."""
        return max(map(len, self.plan), default=1)

    def widths(self, index: np.ndarray) -> dict[str, int]:
        """Up to the end of the longest; all where some row holds several texts."""
        if self.most > 1:
            return {}
        longest = max(self.texts[self.plan[i][0]].ids.size for i in index.tolist())
        return dict.fromkeys(self._long, int(longest))

    @property
    def _long(self) -> tuple[str, ...]:
        """The arrays [B, L]."""
        source = SOURCE if self.reads.start is not None else ()
        told = ("targets", "weights") if self.problem == "tokens" else ()
        return (*READ, *["types"] * self.reads.types, *source, *told)

    def _blank(self, size: int) -> Batch:
        """`size` rows of filler."""
        batch = {
            name: np.full((size, self.length), self.pad if name in ("tokens", "source") else 0)
            for name in self._long
        }
        whole = self.problem in ("single", "tokens")
        if self.problem != "tokens":
            batch["targets"] = np.zeros((size, self.most * self.width))
            batch["weights"] = np.zeros((size, self.most))
        kinds = {"weights": np.float32, "targets": np.int32 if whole else np.float32}
        return {name: array.astype(kinds.get(name, np.int32)) for name, array in batch.items()}

    def take(self, index: np.ndarray, drawn: np.ndarray) -> Batch:
        """The rows `index` [B].

        tokens, segments, positions and what else is read, int32 [B, L]. targets: of single labels
        int32 [B, K], of several and of a regression float32 [B, K x C], of words int32 [B, L].
        weights: float32 [B, K] or [B, L], 1 where something is told, else 0.
        """
        batch = self._blank(index.size)
        for row, number in enumerate(index.tolist()):
            start = 0
            for place, which in enumerate(self.plan[number]):
                text = self.texts[which]
                at = self._put(batch, row, start, place + 1, text)
                if self.problem == "tokens":
                    batch["targets"][row, at] = np.maximum(text.answer, 0)
                    batch["weights"][row, at] = text.answer >= 0
                else:
                    own = slice(place * self.width, (place + 1) * self.width)
                    batch["targets"][row, own] = text.answer
                    batch["weights"][row, place] = 1
                start = at.stop
        return batch

    def _put(self, batch: Batch, row: int, start: int, segment: int, text: Answered) -> slice:
        """Write a text where it is read, and return its columns."""
        at = lay(batch, row, start, segment, text.ids)
        if self.reads.types:
            batch["types"][row, at] = text.types
        if self.reads.start is not None:
            batch["tokens"][row, at] = np.append(self.reads.start, text.ids[:-1])
            lay(batch, row, start, segment, text.ids, SOURCE)
        return at
