"""Which tokens of a row are predicted, and what stands for them (Devlin et al. 2018, section 3.1).

token     each by itself
word      whole words, as in BERT's later models
span      spans of whole words, their lengths geometric (Joshi et al. 2020, section 3.1)
"""

import numpy as np

STOP, LONGEST = 0.2, 10
"""Of a span's length in words: the chance to end after each, and the most."""
SPANS = np.cumsum(STOP * (1 - STOP) ** np.arange(LONGEST) / (1 - (1 - STOP) ** LONGEST))
"""The chance that a span is so long or shorter."""


def masked(
    ids: np.ndarray,
    rng: np.random.Generator,
    *,
    may: np.ndarray,
    starts: np.ndarray,
    rate: float,
    hidden: float,
    random: float,
    unit: str,
    mask: int,
    others: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(columns int64 [m] in order, ids [n] with what stands there instead) of a row of ids [n].

    may: bool [n], false for special tokens, which no unit crosses. starts: bool [n], where words
    begin. m is `rate` of those that may, at least one where there is any; with words it is less
    where none fits in. `hidden` of what is chosen becomes `mask`, `random` one of `others`; in
    spans all of one alike.
    """
    places = np.flatnonzero(may)
    if not places.size:
        return places, ids
    budget = max(1, round(rate * places.size))
    if unit == "token":
        chosen = np.argsort(rng.random(places.size))[:budget]
        alike = np.arange(budget)
    else:
        word = _words(may, starts)[places]
        pick = _whole if unit == "word" else _spans
        chosen, alike = pick(word, budget, rng)
    order = np.argsort(chosen)
    at, alike = places[chosen[order]], alike[order]
    fate = rng.random(budget)[alike]
    drawn = others[(rng.random(at.size) * others.size).astype(np.int64)]
    found = ids.copy()
    found[at] = np.where(fate < hidden, mask, np.where(fate < hidden + random, drawn, ids[at]))
    return at, found


def _words(may: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The number of each position's word; the numbers of words on both sides of what may not be
    masked are more than one apart.
    """
    return np.cumsum(np.where(may, starts | np.append(True, ~may[:-1]), 2))


def _whole(
    word: np.ndarray, budget: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(indices into `word` [n], a number of each by itself): words in random order that fit in."""
    names, first, sizes = np.unique(word, return_index=True, return_counts=True)
    found: list[int] = []
    for each in rng.permutation(names.size).tolist():
        if len(found) + sizes[each] <= budget:
            found += range(first[each], first[each] + sizes[each])
        if len(found) == budget:
            break
    if not found:  # no word is short enough
        found = list(range(first[0], first[0] + budget))
    return np.array(found), np.arange(len(found))


def _spans(
    word: np.ndarray, budget: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(indices into `word` [n], the number of the span of each); the last span may be cut."""
    names, first = np.unique(word, return_index=True)
    ends = np.append(first[1:], word.size)
    span = np.full(word.size, -1)
    left, count = budget, 0
    while left:
        length = 1 + int(np.searchsorted(SPANS, rng.random()))
        start = int(rng.random() * names.size)
        if span[first[start]] >= 0:
            continue
        last = start
        while last - start + 1 < length and last + 1 < names.size:
            if names[last + 1] != names[last] + 1 or span[first[last + 1]] >= 0:
                break
            last += 1
        some = slice(first[start], min(ends[last], first[start] + left))
        span[some] = count
        left, count = left - (some.stop - some.start), count + 1
    chosen = np.flatnonzero(span >= 0)
    return chosen, span[chosen]
