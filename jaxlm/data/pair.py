"""A source and its target, and how long they can be."""

from typing import NamedTuple

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]
"""Source and target ids, int32 [n] and [m], with nothing around them."""


class Sizes(NamedTuple):
    """The most ids that pairs can have, int64 [k] each, by the lengths of their texts [k]."""

    source: np.ndarray
    target: np.ndarray
    both: np.ndarray
    """Of the two together."""
