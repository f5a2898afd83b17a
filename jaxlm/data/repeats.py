"""Which documents say what one before them said: equal texts, found by their hashes."""

from collections.abc import Sequence

import numpy as np

ROUND = 2**24
"""Hashes that are sorted at a time, in about a gigabyte of memory."""


def repeated(hashes: Sequence[np.ndarray], most: int = ROUND) -> np.ndarray:
    """bool [documents], over all shards in order: whether an equal one stands before it.

    hashes: uint8 [documents, 16] of each shard, which may be mapped from a file. `most` of them are
    sorted at a time, those with the same first bits, so that memory is bounded. The first of equal
    ones in the order of (shard, row) is the one that stays.
    """
    counts = [each.shape[0] for each in hashes]
    starts = np.cumsum([0, *counts])
    found = np.zeros(int(starts[-1]), bool)
    rounds = 1 << max(0, -(-found.size // most) - 1).bit_length()
    for turn in range(rounds):
        keys, places = [], []
        for start, each in zip(starts[:-1], hashes, strict=True):
            pair = np.ascontiguousarray(each).view(">u8").reshape(-1, 2)
            at = np.flatnonzero(pair[:, 0] >> np.uint64(32) & np.uint64(rounds - 1) == turn)
            keys.append(pair[at].astype(np.uint64))
            places.append(start + at)
        key, place = np.concatenate(keys), np.concatenate(places)
        order = np.lexsort((place, key[:, 1], key[:, 0]))
        same = (key[order[1:]] == key[order[:-1]]).all(axis=1)
        found[place[order[1:][same]]] = True
    return found
