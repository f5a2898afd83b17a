"""Rows of sources and their targets, made of documents anew each time that they are drawn.

The corruption of a row is a pure function of the seed and of its place in all that is ever drawn,
so no pass sees the same one.
"""

from dataclasses import dataclass

import numpy as np

from jaxlm.core.errors import ConfigError
from jaxlm.data import noise
from jaxlm.data.cache import Tokens
from jaxlm.data.corruptions import Corruption
from jaxlm.data.packing import Batch
from jaxlm.data.pieces import Pieces
from jaxlm.data.sides import START, After, Beside, Sides
from jaxlm.text.frames import Frame
from jaxlm.text.tokenizer import Tokenizer

TOGETHER = 8
"""Pieces that fill the source of a packed row and whose targets have room; the shorter they are,
the more of their targets is what stands around text.
"""


@dataclass(frozen=True)
class Corrupted:
    """Rows of pieces of a stream, each piece a pair of its own."""

    pieces: Pieces
    corruption: Corruption
    sides: Sides
    seed: int

    @property
    def count(self) -> int:
        """How many."""
        return self.pieces.count

    @property
    def tokens(self) -> int:
        """Of the stream."""
        return self.pieces.tokens

    @property
    def digest(self) -> str:
        """Of the pieces and of what becomes of them."""
        return repr((self.pieces.digest, self.corruption.what, self.sides, self.seed))

    def widths(self, index: np.ndarray) -> dict[str, int]:
        """Up to the end of what the longest may become where one piece is in a row, else all."""
        if self.pieces.shape != "padded":
            return {}
        longest = self.pieces.sizes(index).max(keepdims=True)
        return self.sides.widths(self.corruption.sizes(longest))

    def take(self, index: np.ndarray, drawn: np.ndarray) -> Batch:
        """The rows `index` [B], corrupted as at `drawn` [B]: arrays as `sides` has them.

        Segments are numbered from 1, those of a source as those of its target.
        """
        batch = self.sides.blank(index.size)
        for row, (number, draw) in enumerate(zip(index.tolist(), drawn.tolist(), strict=True)):
            generator, place = noise.generator(self.seed, draw), START
            for segment, ids in enumerate(self.pieces.row(number), 1):
                pair = self.corruption.pair(ids, generator)
                place = self.sides.put(batch, row, segment, pair, place)
        return batch


def corrupted(
    stream: Tokens,
    tokenizer: Tokenizer,
    corruption: Corruption,
    *,
    shape: str,
    length: int,
    start: int | None,
    seed: int,
) -> Corrupted:
    """The rows of a stream of documents.

    shape: as of Pieces. length: the most tokens of a source and of a target, or of both together in
    a decoder. start: what an encoder-decoder's targets begin with; None: of a decoder. Raises
    ConfigError where a row has no room for a text of two tokens, and as the corruption's check.
    """
    sides = _sides(tokenizer, length, start)
    lengths = np.arange(1, 2 * length + 1)  # no text is longer than its source and target
    sizes = corruption.sizes(lengths)
    longest = int(sides.fits(sizes).sum())
    if longest < 2:
        least = max(sides.widths(corruption.sizes(np.array([2]))).values())
        what = f"{length} leaves no room for two tokens of text and what goes around them"
        raise ConfigError("length", f"{what}; use {least} or more")
    corruption.check(longest)
    fitting = corruption.sizes(lengths[:longest])
    sides = sides.narrowed(fitting, most=TOGETHER if shape == "packed" else 1)
    pieces = Pieces(
        stream,
        shape,
        longest=longest,
        cost=lambda sizes: sides.cost(corruption.sizes(sizes)),
        width=sides.room,
        begins=tokenizer.bos is not None,
        vocab=tokenizer.vocab,
    )
    return Corrupted(pieces, corruption, sides, seed)


def _sides(tokenizer: Tokenizer, length: int, start: int | None) -> Sides:
    end, frame = (tokenizer.eos,), tokenizer.frame
    if start is not None:
        return Beside(
            length, length, frame._replace(after=frame.after or end), start, tokenizer.pad
        )
    first = () if tokenizer.bos is None else (tokenizer.bos,)
    return After(length, Frame(first, end), tokenizer.pad)
