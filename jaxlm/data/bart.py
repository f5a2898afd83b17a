"""BART's corruption of a text, whose target is the text as it was (Lewis et al. 2019, section 2.2).

Each transformation maps places to places: `at` int64 [n] says which token of the text stands where,
HOLE for a mask, and the result says the same of the corrupted text. `may` [text] is false for
special tokens, which no transformation moves, removes or crosses.
"""

import math
from typing import NamedTuple

import numpy as np

HOLE = -1
MEAN_SPAN = 3.0
"""Of text infilling: the Poisson distribution's lambda."""


class Noise(NamedTuple):
    """How a text is corrupted. BART's own choice: infilling of 0.3 and all sentences permuted."""

    infill: float = 0.3
    """Share of the tokens that spans replace, each by one mask."""
    permute: bool = True
    """Whether sentences change places."""
    mask: float = 0.0
    """Share of the tokens that are masked one by one."""
    delete: float = 0.0
    """Share of the tokens that are removed."""
    rotate: float = 0.0
    """The chance that the text starts at another token."""


def noised(
    ids: np.ndarray,
    rng: np.random.Generator,
    *,
    may: np.ndarray,
    ends: np.ndarray,
    mask: int,
    noise: Noise,
) -> np.ndarray:
    """The corrupted ids of a text of ids [n]; ends: bool [n], where a sentence's last token is."""
    at = np.arange(ids.size)
    if noise.permute:
        at = permuted(at, rng, may=may, ends=ends)
    if noise.rotate and rng.random() < noise.rotate:
        at = rotated(at, rng, may=may)
    if noise.delete:
        at = deleted(at, rng, may=may, rate=noise.delete)
    if noise.mask:
        at = holed(at, rng, may=may, rate=noise.mask)
    if noise.infill:
        at = infilled(at, rng, may=may, rate=noise.infill)
    return np.where(at == HOLE, mask, ids[at]).astype(ids.dtype)


def permuted(
    at: np.ndarray, rng: np.random.Generator, *, may: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Sentences in random order; the last of each stretch between special tokens needs no end."""
    found = at.copy()
    for start, end in _stretches(at, may):
        cuts = start + 1 + np.flatnonzero(ends[at[start : end - 1]])
        sentences = np.split(at[start:end], cuts - start)
        order = rng.permutation(len(sentences))
        found[start:end] = np.concatenate([sentences[each] for each in order])
    return found


def rotated(at: np.ndarray, rng: np.random.Generator, *, may: np.ndarray) -> np.ndarray:
    """Each stretch between special tokens starts at one of its tokens, each as likely."""
    found = at.copy()
    for start, end in _stretches(at, may):
        found[start:end] = np.roll(at[start:end], -int(rng.integers(end - start)))
    return found


def deleted(
    at: np.ndarray, rng: np.random.Generator, *, may: np.ndarray, rate: float
) -> np.ndarray:
    """Without `rate` of the tokens."""
    return np.delete(at, _some(at, rng, may, rate))


def holed(at: np.ndarray, rng: np.random.Generator, *, may: np.ndarray, rate: float) -> np.ndarray:
    """A mask for each of `rate` of the tokens."""
    found = at.copy()
    found[_some(at, rng, may, rate)] = HOLE
    return found


def infilled(
    at: np.ndarray,
    rng: np.random.Generator,
    *,
    may: np.ndarray,
    rate: float,
    mean: float = MEAN_SPAN,
) -> np.ndarray:
    """One mask for each span; together they are `rate` of the tokens.

    Lengths are Poisson's, the last one cut; a span of none puts a mask before a token. A span that
    would cross a special token is one on each side.
    """
    places = np.flatnonzero(_may(at, may))
    budget = round(rate * places.size)
    if not budget:
        return at
    lengths = _lengths(budget, mean, rng)
    spans = rng.permutation(lengths[lengths > 0])  # the one that was cut is anywhere
    # Spans and kept tokens in random order: every way to lay the spans is as likely.
    units = np.ones(places.size - budget + spans.size, np.int64)
    slots = np.sort(rng.permutation(units.size)[: spans.size])
    units[slots] = spans
    first = np.cumsum(units)[slots] - spans
    inside = np.repeat(np.arange(spans.size), spans)
    taken = places[first[inside] + np.arange(budget) - (np.cumsum(spans) - spans)[inside]]
    opens = np.append(True, (np.diff(inside) > 0) | (np.diff(taken) > 1))
    found = at.copy()
    found[taken[opens]] = HOLE
    kept = np.delete(np.arange(at.size), taken[~opens])
    before = places[(rng.random(lengths.size - spans.size) * places.size).astype(np.int64)]
    return np.insert(found[kept], np.searchsorted(kept, before), HOLE)


def _lengths(budget: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson's lengths up to the first whose sum reaches the budget, which is cut to it."""
    most = math.ceil(mean + 10 * math.sqrt(mean) + 10)
    chances = [math.exp(-mean) * mean**k / math.factorial(k) for k in range(most)]
    below = np.cumsum(chances)
    found = np.zeros(0, np.int64)
    while found.sum() < budget:
        drawn = np.searchsorted(below, rng.random(math.ceil(budget / mean) + 8), side="right")
        found = np.append(found, np.minimum(drawn, most))
    total = np.cumsum(found)
    last = int(np.searchsorted(total, budget))
    found[last] -= total[last] - budget
    return found[: last + 1]


def _some(at: np.ndarray, rng: np.random.Generator, may: np.ndarray, rate: float) -> np.ndarray:
    """Places of `rate` of the tokens that may be corrupted, without order."""
    places = np.flatnonzero(_may(at, may))
    return rng.permutation(places)[: round(rate * places.size)]


def _may(at: np.ndarray, may: np.ndarray) -> np.ndarray:
    return (at != HOLE) & may[at]


def _stretches(at: np.ndarray, may: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of each run of places that may be corrupted."""
    edges = np.flatnonzero(np.diff(_may(at, may), prepend=False, append=False))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
