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


def mask_row(
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
    begin. m is `rate` of those that may, at least one where there is any; with words and spans it
    is less where no word fits in. `hidden` of what is chosen becomes `mask`, `random` one of
    `others`; in spans all of one alike.
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
    _, first, sizes = np.unique(word, return_index=True, return_counts=True)
    firsts, lengths, left = first.tolist(), sizes.tolist(), budget
    found: list[int] = []
    for each in rng.permutation(len(firsts)).tolist():
        if lengths[each] <= left:
            found += range(firsts[each], firsts[each] + lengths[each])
            left -= lengths[each]
            if not left:
                break
    chosen = np.array(found) if found else _part(first, budget, rng)
    return chosen, np.arange(chosen.size)


def _spans(
    word: np.ndarray, budget: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(indices into `word` [n], the number of the span of each): spans from words in random order,
    each shorter where it meets another, what no unit crosses, or the budget.
    """
    names, first = np.unique(word, return_index=True)
    edges, name = np.append(first, word.size).tolist(), names.tolist()
    lengths = (1 + np.searchsorted(SPANS, rng.random(len(name)))).tolist()
    span, taken = np.full(word.size, -1), [False] * len(name)
    left, count = budget, 0
    for each, start in enumerate(rng.permutation(len(name)).tolist()):
        end = start
        while end < min(start + lengths[each], len(name)) and not taken[end]:
            if name[end] - name[start] != end - start or edges[end + 1] - edges[start] > left:
                break
            taken[end] = True
            end += 1
        if end > start:
            span[edges[start] : edges[end]] = count
            left, count = left - (edges[end] - edges[start]), count + 1
            if not left:
                break
    chosen = np.flatnonzero(span >= 0) if count else _part(first, budget, rng)
    return chosen, np.maximum(span[chosen], 0)


def _part(first: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
    """The start of some word, where every word is longer than the budget."""
    start = first[int(rng.random() * first.size)]
    return np.arange(start, start + budget)
