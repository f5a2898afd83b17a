"""Rows of an encoder with a part of their tokens masked, anew each time that they are drawn.

Liu et al. 2019, section 4.1: the noise of a row is a pure function of the seed and of its place in
all that is ever drawn, so no pass sees the same one.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from jaxlm.core.errors import ConfigError
from jaxlm.data import masking, noise
from jaxlm.data.cache import Tokens
from jaxlm.data.packing import Batch, lay
from jaxlm.data.pieces import Pieces
from jaxlm.text.tokenizer import Tokenizer


class How(Protocol):
    """What the configuration says of masking."""

    @property
    def rate(self) -> float:
        """Share of the tokens that is predicted."""
        ...

    @property
    def hidden(self) -> float:
        """Share of these that the mask token stands for."""
        ...

    @property
    def random(self) -> float:
        """Share of these for which another token stands."""
        ...

    @property
    def unit(self) -> str:
        """token, word or span."""
        ...

    @property
    def rows(self) -> str:
        """full, packed, padded or pairs."""
        ...


@dataclass(frozen=True)
class Masked:
    """Rows of `length` tokens. types: whether the model tells token types apart."""

    pieces: Pieces
    tokenizer: Tokenizer
    how: How
    length: int
    types: bool
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
        """Of the pieces and of the noise."""
        how = self.how
        parts = how.rate, how.hidden, how.random, how.unit, how.rows
        return repr((self.pieces.digest, *parts, self.types, self.seed))

    def widths(self, index: np.ndarray) -> dict[str, int]:
        """Up to the end of the longest where one piece is in a row, else all."""
        if self.how.rows not in ("padded", "pairs"):
            return {}
        longest = int(self.pieces.cost(self.pieces.sizes(index)).max())
        most = {"at": self._places(longest)}
        most["targets"] = most["weights"] = most["at"]
        most["tokens"] = most["segments"] = most["positions"] = most["types"] = longest
        return most

    def take(self, index: np.ndarray, drawn: np.ndarray) -> Batch:
        """The rows `index` [B], masked with the noise of `drawn` [B].

        tokens, segments from 1, positions from 0 in each, and types where there are any [B, L]; at,
        targets int32 and weights float32 [B, M], the columns that are predicted, M = rate x L.
        """
        batch = self._blank(index.size)
        for row, (number, draw) in enumerate(zip(index.tolist(), drawn.tolist(), strict=True)):
            generator = noise.generator(self.seed, draw)
            start = 0
            for segment, (ids, types) in enumerate(self._framed(number, generator), 1):
                at = lay(batch, row, start, segment, ids)
                if self.types:
                    batch["types"][row, at] = types
                start = at.stop
            self._mask(batch, row, start, generator)
        return batch

    def _blank(self, size: int) -> Batch:
        shape, places = (size, self.length), (size, self._places(self.length))
        names = ("segments", "positions", *["types"] * self.types)
        return {
            "tokens": np.full(shape, self.tokenizer.pad, np.int32),
            **{name: np.zeros(shape, np.int32) for name in names},
            "at": np.zeros(places, np.int32),
            "targets": np.zeros(places, np.int32),
            "weights": np.zeros(places, np.float32),
        }

    def _places(self, length: int) -> int:
        """Most tokens that are predicted in so many."""
        return max(1, round(self.how.rate * length))

    def _framed(
        self, number: int, generator: np.random.Generator
    ) -> list[tuple[list[int], list[int]]]:
        """(ids, token types) of each piece of a row, with what goes around it."""
        found = [ids.tolist() for ids in self.pieces.row(number)]
        if self.how.rows != "pairs":
            return [self.tokenizer.joined(ids) for ids in found]
        cuts = [int(generator.integers(1, max(len(ids), 2))) for ids in found]
        return [
            self.tokenizer.joined(ids[:cut], ids[cut:])
            for ids, cut in zip(found, cuts, strict=True)
        ]

    def _mask(self, batch: Batch, row: int, end: int, generator: np.random.Generator) -> None:
        ids, segments = batch["tokens"][row, :end], batch["segments"][row, :end]
        words, how = self._words, self.how
        starts = words.starts[ids] | np.append(True, words.ends[ids[:-1]])
        starts |= np.append(True, segments[1:] != segments[:-1])
        at, masked = masking.mask_row(
            ids,
            generator,
            may=words.may[ids],
            starts=starts,
            rate=how.rate,
            hidden=how.hidden,
            random=how.random,
            unit=how.unit,
            mask=words.mask,
            others=words.others,
        )
        batch["at"][row, : at.size] = at
        batch["targets"][row, : at.size] = ids[at]
        batch["weights"][row, : at.size] = 1
        batch["tokens"][row, :end] = masked

    @cached_property
    def _words(self) -> "Words":
        return Words.of(self.tokenizer)


@dataclass(frozen=True)
class Words:
    """What masking knows of each id, bool [vocab]."""

    may: np.ndarray
    """It is no special token."""
    starts: np.ndarray
    """It begins a word."""
    ends: np.ndarray
    """What follows begins a word."""
    others: np.ndarray
    """The ids that may stand for another, int32."""
    mask: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Words":
        """Those of a tokenizer, which `check_mask` has let pass."""
        may = np.ones(tokenizer.vocab, bool)
        may[list(tokenizer.names.values())] = False
        others = np.flatnonzero(may).astype(np.int32)
        mask = tokenizer.mask
        assert mask is not None
        return cls(may, tokenizer.word_starts(), tokenizer.word_ends(), others, mask)


def masked(
    stream: Tokens, tokenizer: Tokenizer, how: How, *, length: int, types: bool, seed: int
) -> Masked:
    """The rows of a stream of documents. Raises ConfigError for a row that has no room for text."""
    if how.rows == "pairs":
        frame = tokenizer.pair_frame
        around = len(frame.before) + len(frame.between) + len(frame.after)
    else:
        around = len(tokenizer.framed([]))
    if length - around < 2:
        what = f"{length} leaves no room for text beside {around} special tokens"
        raise ConfigError("length", f"{what}; use {around + 2} or more")
    pieces = Pieces(
        stream,
        "padded" if how.rows == "pairs" else how.rows,
        longest=length - around,
        cost=lambda sizes: sizes + around,
        width=length,
        begins=tokenizer.bos is not None,
        vocab=tokenizer.vocab,
    )
    return Masked(pieces, tokenizer, how, length, types, seed)


def check_mask(tokenizer: Tokenizer, objective: str = "mlm") -> None:
    """Raise ConfigError for a tokenizer without a mask token."""
    if tokenizer.mask is None:
        what = f"has no mask token, which objective.type={objective} needs"
        raise ConfigError("tokenizer", f"{what}; name one in tokenizer_config.json: mask_token")
