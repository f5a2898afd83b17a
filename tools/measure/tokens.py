"""The batch that every side of a case gets."""

from typing import Any

import numpy as np


def batch(shape: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random ids [B, L], each row one document, with the targets one further on."""
    rows, length, vocab = shape["batch"], shape["length"], shape["model"]["vocab"]
    ids = np.random.default_rng(0).integers(0, vocab, (rows, length + 1), dtype=np.int32)
    return {
        "tokens": ids[:, :-1].copy(),
        "targets": ids[:, 1:].copy(),
        "weights": np.ones((rows, length), np.float32),
        "segments": np.ones((rows, length), np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    }
