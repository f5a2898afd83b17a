"""Random numbers that are a pure function of a key, such as a seed and the number of a row."""

import hashlib

import numpy as np
from numpy.random.bit_generator import ISeedSequence


class _Key(ISeedSequence):
    """A key of Philox's that is known: numpy would ask the system for one first, and wait."""

    def __init__(self, digest: bytes):
        self._words = np.frombuffer(digest, "<u8").astype(np.uint64)

    def generate_state(self, n_words: int, dtype=np.uint32) -> np.ndarray:
        return self._words


def generator(*key: int) -> np.random.Generator:
    """A stream of its own for each key, the same on every process (Salmon et al. 2011, Philox)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    # numpy takes any ISeedSequence; its stubs know of SeedSequence alone.
    return np.random.Generator(np.random.Philox(_Key(digest)))  # pyright: ignore[reportArgumentType]
