"""Texts cut in two: what comes first is the source, and the rest its target."""

import numpy as np

from jaxlm.data.pair import Pair, Sizes


def prefixed(ids: np.ndarray, rng: np.random.Generator) -> Pair:
    """A text cut in two, the length of its first part uniform (Raffel et al. 2020, section 3.2.1).

    One of a single token is all prefix.
    """
    cut = int(rng.integers(1, ids.size)) if ids.size > 1 else ids.size
    return ids[:cut], ids[cut:]


def prefix_sizes(length: np.ndarray) -> Sizes:
    """Of the pairs of `prefixed`."""
    return Sizes(np.maximum(length - 1, 1), length - 1, length)


def sequential_split(n: int, rng: np.random.Generator, rate: float = 0.25) -> int:
    """Length of the prefix of a text of n >= 2 tokens whose target is `rate` of it in the mean,
    its length uniform (S-denoising, Tay et al. 2022, section 3.1.2).
    """
    most = int(longest_end(np.int64(n), rate))
    least = min(most, max(1, round(2 * rate * n) - most))
    return n - int(rng.integers(least, most + 1))


def longest_end(length: np.ndarray | np.integer, rate: float) -> np.ndarray:
    """Most tokens after the prefix of `sequential_split`, in texts of `length` tokens."""
    return np.clip(np.rint(2 * rate * length) - 1, 1, length - 1).astype(np.int64)
