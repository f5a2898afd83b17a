"""Documents in pieces that fit a row: what encoders and encoder-decoders are trained on.

full      stretches of all documents after one another, an end token between two, each stretch as
          long as fits (FULL-SENTENCES of Liu et al. 2019, section 4.2)
packed    documents, cut where they are longer, several in a row
padded    the same, one in a row
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxlm.core.errors import DataError
from jaxlm.data import bins
from jaxlm.data.cache import Tokens

Cost = Callable[[np.ndarray], np.ndarray]
"""Lengths of pieces -> columns of a row that each takes."""


@dataclass(frozen=True)
class Pieces:
    """The pieces of a stream by row, each row a pure function of its number.

    begins: whether each document of the stream has a start token, which no piece has. longest: most
    ids in a piece. cost and width: what a piece takes of a row, and what the row has; of `packed`.
    """

    stream: Tokens
    shape: str
    longest: int
    cost: Cost
    width: int
    begins: bool
    vocab: int

    @property
    def count(self) -> int:
        """Rows."""
        if self.shape == "full":
            return max(0, -(-(int(self._joined[-1]) - 1) // self.longest))
        return len(self._plan) if self.shape == "packed" else len(self._cut[0])

    @property
    def tokens(self) -> int:
        """Of the stream."""
        return self.stream.ids.size

    @property
    def digest(self) -> str:
        """Of the stream, and of how it is cut."""
        return repr((self.stream.digest, self.shape, self.longest, self.width))

    def sizes(self, index: np.ndarray) -> np.ndarray:
        """int64 [n]: how many ids the piece of each of the rows `index` [n] has; of `padded`."""
        start, end = self._cut
        return end[index] - start[index]

    def row(self, number: int) -> list[np.ndarray]:
        """The ids int32 [n] of each piece of a row.

        Raises DataError for an id that is not under `vocab`, which a model would clamp in silence.
        """
        found = [self._stretch(number)] if self.shape == "full" else self._pieces(number)
        for ids in found:
            if ids.size and ids.max() >= self.vocab:
                wrong = f"id {ids.max()} is outside the vocabulary of {self.vocab} ids"
                advice = "remove this folder, and it is made again"
                raise DataError(self.stream.where, f"{wrong}; {advice}")
        return [ids.astype(np.int32) for ids in found]

    @cached_property
    def _joined(self) -> np.ndarray:
        """int64 [documents + 1]: where each starts among all, without their start tokens."""
        offsets = self.stream.offsets
        return offsets - np.arange(offsets.size) * self.begins

    def _stretch(self, number: int) -> np.ndarray:
        last = int(self._joined[-1]) - 1  # the last end token ends nothing
        at = np.arange(number * self.longest, min((number + 1) * self.longest, last))
        document = np.searchsorted(self._joined, at, side="right")
        ids = self.stream.ids[at + document * self.begins]
        ends = at[-1] + 1 == self._joined[document[-1]]
        return ids[:-1] if ends and ids.size > 1 else ids  # what comes around a piece ends it

    @cached_property
    def _cut(self) -> tuple[np.ndarray, np.ndarray]:
        """(start, end) in the stream of every piece of `packed` and `padded`."""
        first, last = self.stream.offsets[:-1] + self.begins, self.stream.offsets[1:] - 1
        parts = -(-np.maximum(last - first, 0) // self.longest)
        document = np.repeat(np.arange(first.size), parts)
        part = np.arange(document.size) - np.repeat(np.cumsum(parts) - parts, parts)
        start = first[document] + part * self.longest
        return start, np.minimum(start + self.longest, last[document])

    @cached_property
    def _plan(self) -> list[list[int]]:
        start, end = self._cut
        return bins.plan(self.cost(end - start), self.width)

    def _pieces(self, number: int) -> list[np.ndarray]:
        start, end = self._cut
        chosen = self._plan[number] if self.shape == "packed" else [number]
        return [self.stream.ids[start[i] : end[i]] for i in chosen]
