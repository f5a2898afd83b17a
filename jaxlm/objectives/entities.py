"""Entities among the labels of words, found as seqeval's default mode does (Nakayama 2018).

A label is a prefix of PREFIXES, with or without a type behind it: B-PER, I-PER, O.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PREFIXES = "BIESO"
"""Begin, inside, end, single and outside of an entity."""
STARTS = frozenset(("EE", "EI", "SE", "SI", "OE", "OI"))
ENDS = frozenset(("BB", "BS", "BO", "IB", "IS", "IO"))
"""Two prefixes in a row of one type: where an entity starts at the second, or has ended before."""


class Scheme(NamedTuple):
    """What pairs of labels in a row say, C of them; label C is outside of every text."""

    types: tuple[str, ...]
    type_of: np.ndarray
    """int32 [C + 1], in `types`; -1 outside."""
    starts: np.ndarray
    """bool [C + 1, C + 1]: of a label and the next, whether an entity starts at the next."""
    ends: np.ndarray
    """bool [C + 1, C + 1]: whether one ends at the first."""


def scheme(labels: Sequence[str]) -> Scheme | None:
    """What labels say of entities; None where they are no B- and I-."""
    plain = all(re.fullmatch(rf"[{PREFIXES}](-.+)?", label) for label in labels)
    if not plain or not any(label.startswith(("B-", "I-")) for label in labels):
        return None
    parts = [(label[0], label[2:] or "_") for label in (*labels, "O")]
    types = tuple(sorted({kind for prefix, kind in parts if prefix != "O"}))
    outside = [types.index(kind) if prefix != "O" else -1 for prefix, kind in parts]
    pairs = [[(a, b) for b in parts] for a in parts]
    starts = np.array([[_starts(*pair) for pair in row] for row in pairs])
    ends = np.array([[_ends(*pair) for pair in row] for row in pairs])
    return Scheme(types, np.array(outside, np.int32), starts, ends)


def counted(
    scheme: Scheme, true: Array, found: Array, segments: Array, words: Array
) -> dict[str, Array]:
    """entities, int32 [types, 3]: of each type how many in both, in what was found, in the truth.

    true, found: labels [B, L]; segments [B, L]: texts; words: bool [B, L], where labels count.
    """
    one = jax.vmap(partial(_row, scheme))
    return {"entities": one(true, found, segments, words).sum(0)}


def _row(scheme: Scheme, true: Array, found: Array, segments: Array, words: Array) -> Array:
    order = jnp.argsort(~words, stable=True)  # words beside each other, in their order
    real, texts = words[order], jnp.where(words, segments, 0)[order]
    sides = [
        _entities(scheme, jnp.where(real, label[order], len(scheme.type_of) - 1), texts)
        for label in (true, found)
    ]
    (start, end, kind), (other, its_end, its_kind) = sides
    both = start & other & (end == its_end) & (kind == its_kind)
    columns = [(both, kind), (other, its_kind), (start, kind)]
    every = jnp.arange(len(scheme.types))
    totals = [(at[:, None] & (kind[:, None] == every[None])).sum(0) for at, kind in columns]
    return jnp.stack(totals, axis=1)


def _entities(scheme: Scheme, label: Array, texts: Array) -> tuple[Array, Array, Array]:
    """(whether an entity starts, where the next one ends, its type) at each place [L]."""
    none = jnp.full(1, len(scheme.type_of) - 1, label.dtype)
    first = jnp.concatenate([jnp.ones(1, bool), texts[1:] != texts[:-1]])
    last = jnp.concatenate([first[1:], jnp.ones(1, bool)])
    before = jnp.where(first, none, jnp.concatenate([none, label[:-1]]))
    after = jnp.where(last, none, jnp.concatenate([label[1:], none]))
    starts = jnp.asarray(scheme.starts)[before, label]
    ends = jnp.asarray(scheme.ends)[label, after]
    places = jnp.where(ends, jnp.arange(label.size), label.size)
    return starts, jax.lax.cummin(places, reverse=True), jnp.asarray(scheme.type_of)[label]


def _starts(before: tuple[str, str], label: tuple[str, str]) -> bool:
    (was, other), (now, kind) = before, label
    return now in "BS" or was + now in STARTS or (now != "O" and other != kind)


def _ends(label: tuple[str, str], after: tuple[str, str]) -> bool:
    (now, kind), (then, other) = label, after
    return now in "ES" or now + then in ENDS or (now != "O" and kind != other)
