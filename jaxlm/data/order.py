"""The order of rows as pure functions of an index, on whole arrays of indices.

Row i of an endless, shuffled, mixed sequence is found without the rows before it, whatever the
number of processes, and costs no memory.
"""

import hashlib

import numpy as np

ROUNDS = 8
PERIOD = 2**14
"""Rows after which a mixture's pattern repeats; shares are exact to one in this many."""


def shuffled(index: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Place `index` of an endless repetition of 0..size-1, shuffled anew in each pass.

    index: int64 [n]; key: the seed and whatever tells this order from others. Returns int64 [n].
    """
    passes, within = np.divmod(index, size)
    out = np.empty_like(within)
    for each in np.unique(passes):
        chosen = passes == each
        out[chosen] = _permuted(within[chosen], size, (*key, int(each)))
    return out


def _permuted(index: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """A keyed permutation of 0..size-1: a Feistel network (Luby & Rackoff 1988) over the next
    power of four, walked along its cycle until it is inside (Black & Rogaway 2002).
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8").astype(np.uint64)
    values = index.astype(np.uint64)
    outside = np.ones(values.shape, bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for each in keys:
            left, right = right, left ^ (_mixed(right + each) & mask)
        values[outside] = left << half | right
        outside = values >= size
    return values.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 (the finalizer of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Mixture:
    """Sources drawn in fixed shares, spread evenly: no stretch of rows is far from them."""

    def __init__(self, weights: tuple[float, ...]):
        share = np.asarray(weights) / sum(weights)
        counts = np.maximum(1, np.floor(share * PERIOD).astype(np.int64))
        counts[np.argmax(counts)] += PERIOD - counts.sum()
        turns = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
        owner = np.repeat(np.arange(len(counts)), counts)
        self._source = owner[np.argsort(turns, kind="stable")]
        self._counts = counts
        drawn = self._source[:, None] == np.arange(len(counts))
        self._rank = (np.cumsum(drawn, axis=0) - 1)[np.arange(PERIOD), self._source]

    def draw(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source [n], how many were drawn from it before [n]) of the rows `index` [n]."""
        period, within = np.divmod(index, PERIOD)
        source = self._source[within]
        return source, period * self._counts[source] + self._rank[within]
