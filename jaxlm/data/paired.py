"""Sources and their targets as rows of an encoder-decoder: framed, fitted, packed and held out."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from jaxlm.core.errors import ConfigError, DataError
from jaxlm.data import bins
from jaxlm.data.cache import Say, held_out
from jaxlm.data.packing import Batch
from jaxlm.data.pair import Pair, Sizes
from jaxlm.data.pipeline import Opened, Opener
from jaxlm.data.seq2seq import Example, How, Seq2seqAudit, read_examples
from jaxlm.data.sides import START, Beside
from jaxlm.data.sources import Source
from jaxlm.text.fitting import cut
from jaxlm.text.frames import Frame
from jaxlm.text.tokenizer import Tokenizer

AT_ONCE = 1024
"""Examples that are tokenized together."""


class Rules(Protocol):
    """What the configuration says of examples."""

    @property
    def overlong(self) -> str:
        """error, truncate-left, truncate-right or drop."""
        ...

    @property
    def packing(self) -> bool:
        """Several pairs in a row."""
        ...


@dataclass(frozen=True)
class Paired:
    """Pairs as rows, a segment each of the source's and of the target's; see `Beside`."""

    pairs: tuple[Pair, ...]
    plan: tuple[tuple[int, ...], ...]
    """Of each row, which pairs it holds."""
    sides: Beside

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.plan)

    @property
    def tokens(self) -> int:
        """Of sources and targets."""
        return sum(source.size + target.size for source, target in self.pairs)

    @property
    def digest(self) -> str:
        """Of every pair and of the rows they are in."""
        found = hashlib.sha256(repr((self.plan, self.sides)).encode())
        for source, target in self.pairs:
            found.update(repr((source.size, target.size)).encode())
            found.update(source.tobytes() + target.tobytes())
        return found.hexdigest()

    @cached_property
    def _filled(self) -> Sizes:
        """What is filled of each row, int64 [count] each."""
        sizes = sizes_of(self.pairs)
        return Sizes(*(np.array([side[[*row]].sum() for row in self.plan]) for side in sizes))

    def widths(self, index: np.ndarray) -> dict[str, int]:
        """Up to the end of the fullest source and of the fullest target."""
        return self.sides.widths(Sizes(*(side[index] for side in self._filled)))

    def take(self, index: np.ndarray, drawn: np.ndarray) -> Batch:
        """The rows `index` [B]; arrays as `Beside` has them."""
        batch = self.sides.blank(index.size)
        for row, number in enumerate(index.tolist()):
            place = START
            for segment, which in enumerate(self.plan[number], 1):
                place = self.sides.put(batch, row, segment, self.pairs[which], place)
        return batch


class Fitting(NamedTuple):
    """How texts become pairs of ids that have room in a row."""

    tokenizer: Tokenizer
    overlong: str
    length: int
    """Most ids of a source, with what goes around it."""
    target_length: int
    """Most ids of a target, likewise."""

    @property
    def target_frame(self) -> Frame:
        """Around a target: as around any text, and an end in any case, or none is ever learned."""
        frame = self.tokenizer.frame
        return frame._replace(after=frame.after or (self.tokenizer.eos,))

    def check(self) -> None:
        """Raise ConfigError where no text has room."""
        sides = (
            ("length", self.length, self.tokenizer.frame),
            (
                "objective.target_length" if self.target_length < self.length else "length",
                self.target_length,
                self.target_frame,
            ),
        )
        for key, most, frame in sides:
            if most <= (around := len(frame.around([]))):
                what = f"{most} tokens have no room for a text in the tokenizer's {around} around"
                raise ConfigError(key, f"{what} it; use more")

    def pair(self, example: Example) -> Pair | None:
        """The ids of one example. Raises DataError where it does not fit and must."""
        ((_, pair),) = self.pairs([example], Seq2seqAudit(""))
        return pair

    def pairs(
        self, examples: list[Example], audit: Seq2seqAudit
    ) -> Iterator[tuple[Example, Pair | None]]:
        """Each example that has a target, with its ids, None for one that is dropped."""
        every = [said for each in examples for said in (each.source, each.target or "")]
        ids = iter(self.tokenizer.encode_batch(every))
        for example in examples:
            yield example, self._pair(example, next(ids), next(ids), audit)

    def _pair(
        self, example: Example, source: list[int], target: list[int], audit: Seq2seqAudit
    ) -> Pair | None:
        read = self._cut(example, "source", source, self.tokenizer.frame, audit)
        said = read and self._cut(example, "target", target, self.target_frame, audit)
        if not read or not said:
            return None
        return np.array(read, np.int32), np.array(said, np.int32)

    def _cut(
        self, example: Example, name: str, ids: list[int], frame: Frame, audit: Seq2seqAudit
    ) -> list[int] | None:
        """One side, framed: what is around it stays when it is cut. None where it is dropped."""
        most, key = self.length, "length"
        if name == "target" and self.target_length < most:
            most, key = self.target_length, "objective.target_length"
        if not ids:
            what = f"the {name} has no token; write a text, or leave the record out"
            raise DataError(example.where, what)
        long, room = len(frame.around(ids)), most - len(frame.around([]))
        if len(ids) > room:
            of = f"{name}: "
            if not audit.cut(example.where, long, most, self.overlong, key=key, of=of):
                return None
            ids = cut(ids, room, self.overlong)
        return frame.around(ids)


def fitting(how: How, overlong: str, tokenizer: Tokenizer, length: int) -> Fitting:
    """How a run's texts become pairs. Raises ConfigError for lengths that have room for none."""
    most = how.target_length or length
    if most > length:
        what = f"{most} is more than length={length}, the most that the model reads or writes"
        raise ConfigError("objective.target_length", f"{what}; use {length} or less")
    found = Fitting(tokenizer, overlong, length, most)
    found.check()
    return found


def opener(
    tokenizer: Tokenizer,
    how: How,
    rules: Rules,
    *,
    length: int,
    start: int,
    say: Say | None = None,
) -> Opener:
    """Opens sources of data as pairs, each side framed as the model's own tokenizer does.

    start: the id that every target begins with. What is held out is so by a hash of its source.
    Raises DataError with file and line, ConfigError where no text fits.
    """
    fit = fitting(how, rules.overlong, tokenizer, length)
    sides = Beside(length, fit.target_length, Frame(), start, tokenizer.pad)

    def opened(source: Source, hold_out: float) -> Opened:
        audit, splits = Seq2seqAudit(source.path), ([], [])
        read = read_examples(source, how, audit)
        while some := [*itertools.islice(read, AT_ONCE)]:
            for example, pair in fit.pairs(some, audit):
                if pair is None:
                    continue
                held = hold_out > 0 and held_out(example.source, hold_out)
                splits[held].append(pair)
                audit.held += held
            if say and audit.examples % (10 * AT_ONCE) == 0:
                say(f"reading {source.path}: {audit.examples:,} pairs")
        train, kept = (_planned(each, sides, packing=rules.packing) for each in splits)
        audit.rows = train.count
        audit.check()
        _count(train, audit)
        return Opened(train, kept, {"documents": audit.examples}, audit)

    return opened


def sizes_of(pairs: Iterable[Pair]) -> Sizes:
    """The lengths of pairs."""
    each = np.array([(source.size, target.size) for source, target in pairs], np.int64)
    source, target = each.reshape(-1, 2).T
    return Sizes(source, target, source + target)


def _planned(pairs: list[Pair], sides: Beside, *, packing: bool) -> Paired:
    rows = [[number] for number in range(len(pairs))]
    if packing and pairs:
        rows = bins.plan(sides.cost(sizes_of(pairs)), sides.room)
    return Paired(tuple(pairs), tuple(map(tuple, rows)), sides)


def _count(train: Paired, audit: Seq2seqAudit) -> None:
    source, target, _ = sizes_of(train.pairs)
    audit.kept = len(train.pairs)
    audit.source_tokens, audit.target_tokens = int(source.sum()), int(target.sum())
    audit.longest_source, audit.longest_target = int(source.max()), int(target.max())
