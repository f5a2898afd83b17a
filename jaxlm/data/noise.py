"""Random numbers that are a pure function of a key, such as a seed and the number of a row."""

import hashlib

import numpy as np


def generator(*key: int) -> np.random.Generator:
    """A stream of its own for each key, the same on every process (Salmon et al. 2011, Philox)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8")))
