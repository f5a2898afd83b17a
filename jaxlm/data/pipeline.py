"""Batches as a pure function of (seed, step), the same on any number of processes."""

import hashlib
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxlm.core.errors import ConfigError, DataError
from jaxlm.data import sources
from jaxlm.data.audit import Audit
from jaxlm.data.cache import Cached, Say, Tokens, held_out, tokenized
from jaxlm.data.corpus import open_corpus
from jaxlm.data.examples import How, open_examples
from jaxlm.data.files import is_tokens
from jaxlm.data.order import Mixture, shuffled
from jaxlm.data.packing import Batch, Rows
from jaxlm.data.sources import Source
from jaxlm.text.tokenizer import Tokenizer

Item = TypeVar("Item")
Sources = tuple[Source, ...]
Validation = float | tuple[Source, ...] | None


BUCKETS, MULTIPLE = 8, 8
"""Most widths that the rows of one run have, and what divides them. A program is compiled for each,
of sources and their targets for each pair of widths."""


@dataclass(frozen=True)
class Dataset:
    """Rows of `length` tokens from one or more sources.

    weights: the share of each source; None takes all rows alike. seed: of the order; None goes
    through the rows once, in an order that is the same for every run, so that a part is a sample.
    counts: what was counted while reading. audits: what became of the examples of each source.
    replay: the share of the rows that the last source gives; it stands evenly among the others',
    which alone make a pass.
    """

    sources: tuple[Rows, ...]
    weights: tuple[float, ...] | None
    length: int
    pad: int
    seed: int | None
    counts: dict[str, int] = field(default_factory=dict)
    audits: tuple[Audit, ...] = ()
    replay: float = 0.0

    def replaying(self, rows: Rows, share: float) -> "Dataset":
        """With a share of the rows from another source: what must not be forgotten."""
        return replace(self, sources=(*self.sources, rows), replay=share)

    @property
    def weighted(self) -> bool:
        """Whether sources are drawn by weight, so that no pass over all of them has an end."""
        return self.weights is not None

    @cached_property
    def _starts(self) -> np.ndarray:
        """[own sources + 1]: the number of the first row of each, then that of all."""
        own = self.sources[:-1] if self.replay else self.sources
        return np.cumsum([0, *(source.count for source in own)])

    @cached_property
    def _share(self) -> Fraction:
        """`replay`, so that the same rows are replayed everywhere."""
        return Fraction(self.replay).limit_denominator(10**6)

    @property
    def rows(self) -> int:
        """Rows in one pass over everything, without those of the replay."""
        return int(self._starts[-1])

    @property
    def tokens(self) -> int:
        """Tokens in one pass over everything."""
        return sum(source.tokens for source in self.sources)

    @property
    def digest(self) -> str:
        """Hash of everything that the sequence of batches depends on, but their size."""
        digests = [source.digest for source in self.sources]
        replay = (self.replay,) if self.replay else ()
        what = repr((digests, self.weights, self.length, self.pad, self.seed, *replay))
        return hashlib.sha256(what.encode()).hexdigest()

    def rows_for(self, epochs: float) -> int:
        """Rows in so many passes, those of the replay among them.

        Raises ConfigError for a weighted mixture, which has no pass.
        """
        if self.weighted:
            wrong = (
                "a mixture with weights has no end of a pass; give steps, or leave out the weights"
            )
            raise ConfigError("epochs", wrong)
        own = max(1, round(epochs * self.rows))
        return math.floor((own - 1) / (1 - self._share)) + 1  # the first with so many of them

    def batches(self, size: int) -> int:
        """Batches of `size` rows in one pass; the last may be filled up."""
        return math.ceil(self.rows / size)

    def batch(
        self, step: int, size: int, rows: slice = slice(None), limit: int | None = None
    ) -> Batch:
        """Batch `step` of `size` rows, or the `rows` of it that one process wants.

        Arrays as the sources give them, or narrower where all `size` rows are, one of BUCKETS parts
        of their width. Rows from number `limit` of the sequence on are filler: weight 0, segment 0.
        So are those beyond the only pass of a data set without a seed.
        """
        everyone = step * size + np.arange(size, dtype=np.int64)
        if self.seed is None:
            limit = self.rows if limit is None else min(limit, self.rows)
        widths, index = self._widths(everyone, limit), everyone[rows]
        real = np.arange(index.size) if limit is None else np.flatnonzero(index < limit)
        source, row = self._locate(index[real])
        batch = self._filler(index.size, widths)
        for number in np.unique(source):
            chosen = source == number
            found = self.sources[number].take(row[chosen], index[real[chosen]])
            for name, array in found.items():
                width = min(array.shape[1], batch[name].shape[1])
                batch[name][real[chosen], :width] = array[:, :width]
        return batch

    @cached_property
    def _none(self) -> Batch:
        """A batch without a row: its arrays' names, types and whole widths."""
        empty = np.zeros(0, np.int64)
        found = [source.take(empty, empty) for source in self.sources]
        return {
            name: max((each[name] for each in found), key=lambda array: array.shape[1])
            for name in found[0]
        }

    @property
    def columns(self) -> dict[str, int]:
        """Of each array of a batch, those of the widest."""
        return {name: array.shape[1] for name, array in self._none.items()}

    def _filler(self, size: int, widths: dict[str, int]) -> Batch:
        """`size` rows with nothing to see and nothing to learn."""
        batch = {}
        for name, array in self._none.items():
            fill = self.pad if name in ("tokens", "source") else 0
            width = min(array.shape[1], widths.get(name, array.shape[1]))
            batch[name] = np.full((size, width), fill, array.dtype)
        return batch

    def _widths(self, index: np.ndarray, limit: int | None) -> dict[str, int]:
        """Columns of the batch with the rows `index`: the same for every process's part of it."""
        source, row = self._locate(index if limit is None else index[index < limit])
        needed = [self.sources[n].widths(row[source == n]) for n in np.unique(source)]
        found = {}
        for name, array in self._none.items() if needed else ():
            if all(name in each for each in needed):
                unit = max(MULTIPLE, -(-array.shape[1] // BUCKETS))
                found[name] = -(-max(each[name] for each in needed) // unit) * unit
        return found

    @cached_property
    def _mixture(self) -> Mixture:
        return Mixture(self.weights or ())

    def _locate(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source [n], row in it [n]) of the rows `index` [n] of the sequence."""
        if not self.replay:
            return self._own(index)
        share, denominator = self._share.as_integer_ratio()
        before, after = (i * share // denominator for i in (index, index + 1))
        source, row = self._own(index - before)
        last = len(self.sources) - 1
        again = shuffled(before, self.sources[last].count, (self.seed or 0, last))
        return np.where(after > before, last, source), np.where(after > before, again, row)

    def _own(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `_locate`, of the rows `index` [n] of the sequence without the replay."""
        if self.seed is not None and self.weighted:
            source, drawn = self._mixture.draw(index)
            row = np.empty_like(drawn)
            for number in np.unique(source):
                chosen = source == number
                size = int(self._starts[number + 1] - self._starts[number])
                row[chosen] = shuffled(drawn[chosen], size, (self.seed, int(number)))
            return source, row
        flat = shuffled(index, self.rows, (self.seed or 0,))
        source = np.searchsorted(self._starts, flat, side="right") - 1
        return source, flat - self._starts[source]


class Opened(NamedTuple):
    """One source, read."""

    train: Rows
    held: Rows
    counts: dict[str, int]
    """What was counted on the way."""
    audit: Audit | None = None
    """What became of its examples, where it has examples."""


Opener = Callable[[Source, float], Opened]
"""(source, the share to hold out) -> its rows. Raises DataError for what cannot be read."""


def documents(
    tokenizer: Tokenizer,
    rows: Callable[[Tokens], Rows],
    *,
    parse_special: bool = False,
    cache: str | Path | None = None,
    say: Say | None = None,
    verify: bool = True,
) -> Opener:
    """Opens sources of documents, tokenized or from the cache or from a folder of tokens; rows:
    those of such a stream. verify: as of corpus.open_corpus.

    Raises DataError for a source without any.
    """

    def opened(source: Source, hold_out: float) -> Opened:
        how: Any = {"parse_special": parse_special, "hold_out": hold_out, "say": say}
        if is_tokens(source.path):
            found = open_corpus(source.path, tokenizer, cache=cache, verify=verify, **how)
        else:
            found = tokenized(source, tokenizer, folder=cache, **how)
        _not_empty(source, found, hold_out)
        return Opened(rows(found.train), rows(found.held), found.counts)

    return opened


def answers(tokenizer: Tokenizer, how: How, *, length: int, say: Say | None = None) -> Opener:
    """Opens sources as examples of which answers are learned; see examples.open_examples."""

    def opened(source: Source, hold_out: float) -> Opened:
        train, held, audit = open_examples(
            source, tokenizer, how, length=length, hold_out=hold_out, say=say
        )
        return Opened(train, held, {"documents": audit.examples}, audit)

    return opened


def open_data(
    train: Sources, validation: Validation, opener: Opener, *, length: int, pad: int, seed: int
) -> tuple[Dataset, Dataset | None]:
    """The training and the validation data of a run.

    validation: sources of its own, the share of the training documents to hold out, or None.
    Raises DataError for what cannot be read or is empty, ConfigError for weights that some of
    several sources have.
    """
    weights = _weights(train)
    share = validation if isinstance(validation, float) else 0.0

    def dataset(
        found: list[Opened], split: str, weights: tuple[float, ...] | None, seed: int | None
    ) -> Dataset:
        rows = tuple(getattr(each, split) for each in found)
        counts = dict(sum((Counter(each.counts) for each in found), Counter()))
        audits = tuple(each.audit for each in found if each.audit)
        return Dataset(rows, weights, length, pad, seed, counts, audits)

    found = [opener(source, share) for source in train]
    training = dataset(found, "train", weights, seed)
    if validation is None:
        return training, None
    if not isinstance(validation, tuple):
        held = dataset(found, "held", None, None)
        if not held.rows:
            wrong = f"{share} of {training.counts['documents']} documents holds out none"
            raise DataError("data.validation", f"{wrong}; use a larger share or files of their own")
        return training, held
    return training, dataset([opener(source, 0.0) for source in validation], "train", None, None)


def open_validation(
    train: Sources, validation: Validation, opener: Opener, *, length: int, pad: int
) -> Dataset | None:
    """The validation data alone; `train` is read only where it is a share of that.

    Arguments and errors as for `open_data`.
    """
    own = isinstance(validation, tuple)
    first = validation if own else train
    second = None if own else validation
    data, held = open_data(first, second, opener, length=length, pad=pad, seed=0)
    return replace(data, seed=None, weights=None) if own else held


def training_texts(train: Sources, validation: Validation) -> Iterator[str]:
    """The documents that are trained on, without those held out: what to train a tokenizer on."""
    share = validation if isinstance(validation, float) else 0.0
    texts = itertools.chain.from_iterable(sources.read(source) for source in train)
    return (text for text in texts if not share or not held_out(text, share))


def prefetch(
    fn: Callable[[int], Item], first: int, last: int, depth: int = 2
) -> Generator[Item, None, None]:
    """fn(first), ..., fn(last - 1), computed by one thread up to `depth` ahead.

    What `fn` raises is raised here, at its place. Closing the iterator ends the thread.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    steps = iter(range(first, last))
    try:
        ahead = deque(pool.submit(fn, step) for step in itertools.islice(steps, depth))
        while ahead:
            ready = ahead.popleft().result()
            ahead.extend(pool.submit(fn, step) for step in itertools.islice(steps, 1))
            yield ready
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _weights(train: Sources) -> tuple[float, ...] | None:
    given = [source.weight for source in train if source.weight is not None]
    if given and len(given) < len(train):
        missing = next(source.path for source in train if source.weight is None)
        wrong = f"{missing} has no weight and others have; give all of them one, or none"
        raise ConfigError("data.train", wrong)
    return tuple(given) if len(given) > 1 else None


def _not_empty(source: Source, found: Cached, share: float) -> None:
    if found.train.ids.size > 1:  # one token alone is no row
        return
    counts = Counter(found.counts)
    if counts["documents"]:
        wrong = f"{share} of its {counts['documents']} documents holds out every one"
        raise DataError(source.path, f"{wrong}; use a smaller share or files of their own")
    raise DataError(
        source.path, f"0 documents with text, {counts['empty']} empty; name other files"
    )
