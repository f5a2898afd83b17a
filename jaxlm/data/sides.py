"""How a source and its target stand in a row: beside one another where an encoder reads the source,
else one after the other.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import numpy as np

from jaxlm.data.packing import NAMES, READ, Batch, blank, lay
from jaxlm.data.pair import Pair, Sizes
from jaxlm.text.frames import Frame

SOURCE: tuple[str, ...] = ("source", "source_segments", "source_positions")
"""The arrays [B, S] of what an encoder reads, as packing.READ has those of tokens."""


class Place(NamedTuple):
    """Columns in a row."""

    source: int
    target: int


START = Place(0, 0)


class Sides(Protocol):
    """One of the two ways."""

    @property
    def room(self) -> int:
        """Columns of a row."""
        ...

    def fits(self, sizes: Sizes) -> np.ndarray:
        """Which pairs [k] have room in a row, bool [k]."""
        ...

    def narrowed(self, sizes: Sizes, most: int) -> Self:
        """Rows no wider than what up to `most` of these pairs need that fill a source together."""
        ...

    def cost(self, sizes: Sizes) -> np.ndarray:
        """Columns that pairs [k] take: several have room where the sum of theirs has."""
        ...

    def widths(self, sizes: Sizes) -> dict[str, int]:
        """Columns that the largest of the pairs needs, by array."""
        ...

    def blank(self, size: int) -> Batch:
        """`size` rows of filler."""
        ...

    def put(self, batch: Batch, row: int, segment: int, pair: Pair, place: Place) -> Place:
        """Write a pair into a row as a segment of its own, and return where the next one starts."""
        ...


@dataclass(frozen=True)
class Beside:
    """Of an encoder-decoder.

    source, source_positions, source_segments int32 [B, S]; tokens, targets, segments, positions
    int32 and weights float32 [B, T], the tokens being the targets shifted to the right behind
    `start` (Raffel et al. 2020, section 2.1; Lewis et al. 2019, section 2.1).
    """

    length: int
    """S, and the most that T is."""
    target: int
    """T."""
    frame: Frame
    """Around either."""
    start: int
    pad: int

    @property
    def room(self) -> int:
        """Columns of the source."""
        return self.length

    def fits(self, sizes: Sizes) -> np.ndarray:
        """See Sides."""
        source, target = self._framed(sizes)
        return np.maximum(source, target) <= self.length

    def narrowed(self, sizes: Sizes, most: int) -> "Beside":
        """See Sides: the target."""
        source, target = self._framed(sizes)
        found = (n * target[source <= self.length // n].max(initial=0) for n in range(1, most + 1))
        return replace(self, target=min(int(max(found)), self.length))

    def cost(self, sizes: Sizes) -> np.ndarray:
        """See Sides: of the source, or its part that is as much as the target takes of T."""
        source, target = self._framed(sizes)
        return np.maximum(source, -(-target * self.length // self.target))

    def widths(self, sizes: Sizes) -> dict[str, int]:
        """See Sides."""
        source, target = (int(side.max()) for side in self._framed(sizes))
        return dict.fromkeys(SOURCE, source) | dict.fromkeys(NAMES, target)

    def blank(self, size: int) -> Batch:
        """See Sides."""
        rows = blank(size, self.length, self.pad)
        read = {name: rows[like] for name, like in zip(SOURCE, READ, strict=True)}
        return read | blank(size, self.target, self.pad)

    def put(self, batch: Batch, row: int, segment: int, pair: Pair, place: Place) -> Place:
        """See Sides."""
        source, target = (np.array(self.frame.around(side.tolist()), np.int32) for side in pair)
        shifted = np.append(self.start, target[:-1])
        read = lay(batch, row, place.source, segment, source, SOURCE)
        said = lay(batch, row, place.target, segment, shifted)
        batch["targets"][row, said] = target
        batch["weights"][row, said] = 1
        return Place(read.stop, said.stop)

    def _framed(self, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
        around = len(self.frame.before) + len(self.frame.after)
        return sizes.source + around, sizes.target + around


@dataclass(frozen=True)
class After:
    """Of a decoder: the source, then the target, which alone is learned (Tay et al. 2022, section
    3.2).

    tokens, targets, segments, positions int32 and weights float32 [B, L], as of packing.windows;
    prefix int32 [B, L], 1 where the source is: a model of `prefix` sees it from both sides.
    """

    length: int
    frame: Frame
    """Around both together."""
    pad: int

    @property
    def room(self) -> int:
        """Columns."""
        return self.length

    def fits(self, sizes: Sizes) -> np.ndarray:
        """See Sides."""
        return self.cost(sizes) <= self.length

    def narrowed(self, sizes: Sizes, most: int) -> "After":
        """See Sides: `length` stays."""
        return self

    def cost(self, sizes: Sizes) -> np.ndarray:
        """See Sides: all but the last token, which nothing follows."""
        return sizes.both + len(self.frame.before) + len(self.frame.after) - 1

    def widths(self, sizes: Sizes) -> dict[str, int]:
        """See Sides."""
        return dict.fromkeys((*NAMES, "prefix"), int(self.cost(sizes).max()))

    def blank(self, size: int) -> Batch:
        """See Sides."""
        found = blank(size, self.length, self.pad)
        return found | {"prefix": np.zeros_like(found["segments"])}

    def put(self, batch: Batch, row: int, segment: int, pair: Pair, place: Place) -> Place:
        """See Sides."""
        source, target = pair
        both = np.array(self.frame.around([*source.tolist(), *target.tolist()]), np.int32)
        learned = len(self.frame.before) + source.size
        at = lay(batch, row, place.target, segment, both[:-1])
        places = batch["positions"][row, at]
        batch["targets"][row, at] = both[1:]
        batch["weights"][row, at] = places >= learned - 1
        batch["prefix"][row, at] = places < learned
        return Place(0, at.stop)
