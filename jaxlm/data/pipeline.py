"""Batches as a pure function of (seed, step), the same on any number of processes."""

import hashlib
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxlm.core.errors import ConfigError, DataError
from jaxlm.data import packing, sources
from jaxlm.data.cache import Cached, Say, held_out, tokenized
from jaxlm.data.order import Mixture, shuffled
from jaxlm.data.packing import Batch, Rows, Windows
from jaxlm.data.sources import Source
from jaxlm.text.tokenizer import Tokenizer

Item = TypeVar("Item")
Sources = tuple[Source, ...]
Validation = float | tuple[Source, ...] | None


@dataclass(frozen=True)
class Dataset:
    """Rows of `length` tokens from one or more sources.

    weights: the share of each source; None takes all rows alike. seed: of the order; None goes
    through the rows once, in an order that is the same for every run, so that a part is a sample.
    counts: what was counted while reading.
    """

    sources: tuple[Rows, ...]
    weights: tuple[float, ...] | None
    length: int
    pad: int
    seed: int | None
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def weighted(self) -> bool:
        """Whether sources are drawn by weight, so that no pass over all of them has an end."""
        return self.weights is not None

    @cached_property
    def _starts(self) -> np.ndarray:
        """[sources + 1]: the number of the first row of each, then that of all."""
        return np.cumsum([0, *(source.count for source in self.sources)])

    @property
    def rows(self) -> int:
        """Rows in one pass over everything."""
        return int(self._starts[-1])

    @property
    def tokens(self) -> int:
        """Tokens in one pass over everything."""
        return sum(source.tokens for source in self.sources)

    @property
    def digest(self) -> str:
        """Hash of everything that the sequence of batches depends on, but their size."""
        digests = [source.digest for source in self.sources]
        what = repr((digests, self.weights, self.length, self.pad, self.seed))
        return hashlib.sha256(what.encode()).hexdigest()

    def rows_for(self, epochs: float) -> int:
        """Rows in so many passes. Raises ConfigError for a weighted mixture, which has no pass."""
        if self.weighted:
            wrong = (
                "a mixture with weights has no end of a pass; give steps, or leave out the weights"
            )
            raise ConfigError("epochs", wrong)
        return max(1, round(epochs * self.rows))

    def batches(self, size: int) -> int:
        """Batches of `size` rows in one pass; the last may be filled up."""
        return math.ceil(self.rows / size)

    def batch(
        self, step: int, size: int, rows: slice = slice(None), limit: int | None = None
    ) -> Batch:
        """Batch `step` of `size` rows, or the `rows` of it that one process wants.

        Arrays [B, L] as `packing.windows` gives them. Rows from number `limit` of the sequence on
        are filler: weight 0, segment 0. So are those beyond the only pass of a data set without a
        seed.
        """
        index = step * size + np.arange(size, dtype=np.int64)[rows]
        if self.seed is None:
            limit = self.rows if limit is None else min(limit, self.rows)
        real = np.arange(index.size) if limit is None else np.flatnonzero(index < limit)
        source, row = self._locate(index[real])
        batch = packing.blank(index.size, self.length, self.pad)
        for number in np.unique(source):
            chosen = source == number
            for name, array in self.sources[number].take(row[chosen]).items():
                batch[name][real[chosen]] = array
        return batch

    @cached_property
    def _mixture(self) -> Mixture:
        return Mixture(self.weights or ())

    def _locate(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source [n], row in it [n]) of the rows `index` [n] of the sequence."""
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


def open_data(
    train: Sources,
    validation: Validation,
    *,
    tokenizer: Tokenizer,
    parse_special: bool,
    cache: str | Path | None,
    length: int,
    seed: int,
    say: Say | None = None,
) -> tuple[Dataset, Dataset | None]:
    """The training and the validation data of a run, tokenized or from the cache.

    validation: sources of its own, the share of the training documents to hold out, or None.
    `say` is told of long work. Raises DataError for what cannot be read or is empty, ConfigError
    for weights that some of several sources have.
    """
    weights = _weights(train)
    share = validation if isinstance(validation, float) else 0.0

    def opened(source: Source, hold_out: float) -> Cached:
        return tokenized(
            source,
            tokenizer,
            parse_special=parse_special,
            hold_out=hold_out,
            folder=cache,
            say=say,
        )

    def dataset(
        found: list[Cached], split: str, weights: tuple[float, ...] | None, seed: int | None
    ) -> Dataset:
        vocab, pad = tokenizer.vocab, tokenizer.pad
        rows = tuple(Windows(getattr(each, split), length, vocab, pad) for each in found)
        counts = dict(sum((Counter(each.counts) for each in found), Counter()))
        return Dataset(rows, weights, length, pad, seed, counts)

    found = [opened(source, share) for source in train]
    for source, each in zip(train, found, strict=True):
        _not_empty(source, each, share)
    training = dataset(found, "train", weights, seed)
    if validation is None:
        return training, None
    if not isinstance(validation, tuple):
        held = dataset(found, "held", None, None)
        if not held.rows:
            wrong = f"{share} of {training.counts['documents']} documents holds out none"
            raise DataError("data.validation", f"{wrong}; use a larger share or files of their own")
        return training, held
    own = [opened(source, 0.0) for source in validation]
    for source, each in zip(validation, own, strict=True):
        _not_empty(source, each, 0.0)
    return training, dataset(own, "train", None, None)


def open_validation(
    train: Sources,
    validation: Validation,
    *,
    tokenizer: Tokenizer,
    parse_special: bool,
    cache: str | Path | None,
    length: int,
    say: Say | None = None,
) -> Dataset | None:
    """The validation data alone; `train` is read only where it is a share of that.

    Arguments and errors as for `open_data`.
    """
    own = isinstance(validation, tuple)
    data, held = open_data(
        validation if own else train,
        None if own else validation,
        tokenizer=tokenizer,
        parse_special=parse_special,
        cache=cache,
        length=length,
        seed=0,
        say=say,
    )
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
