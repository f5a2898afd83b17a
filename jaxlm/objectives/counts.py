"""What is counted of predicted labels on the device, and what the counts say in the end."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

BINS = 15
"""Of confidences (Guo et al. 2017, section 4)."""
RESOLVED = 1e-6
"""Share of a sum of squares below which a variance is the rounding of float32 sums."""


def confused(true: Array, found: Array, weights: Array, labels: int) -> dict[str, Array]:
    """confusion, float32 [C, C]: how often a label (row) was taken for another (column).

    true, found: int [B, K]; weights: over 0 where they count.
    """
    rows, columns = jax.nn.one_hot(true, labels), jax.nn.one_hot(found, labels)
    return {"confusion": jnp.einsum("bkr,bkc,bk->rc", rows, columns, jnp.sign(weights))}


def calibrated(confidence: Array, right: Array, weights: Array) -> dict[str, Array]:
    """calibration, float32 [BINS, 3]: of each bin of confidences how many, their sum, how many
    were right. All of one shape; weights: over 0 where they count.
    """
    place = jnp.clip(jnp.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(jnp.int32)
    inside = jax.nn.one_hot(place.reshape(-1), BINS) * jnp.sign(weights).reshape(-1, 1)
    values = jnp.stack([jnp.ones_like(confidence), confidence, right.astype(jnp.float32)], -1)
    exact = jax.lax.Precision.HIGHEST  # else confidences are rounded to 16 bits on accelerators
    return {"calibration": jnp.matmul(inside.T, values.reshape(-1, 3), precision=exact)}


def matched(true: Array, found: Array, weights: Array) -> dict[str, Array]:
    """matches, float32 [C, 3]: of each label how often it was found and there, found, there.

    true, found: bool [B, K, C]; weights: over 0 where they count.
    """
    real = weights > 0
    totals = [(each & real).sum((0, 1)) for each in (true & found, found, true)]
    return {"matches": jnp.stack(totals, axis=1).astype(jnp.float32)}


def moments(true: Array, found: Array, weights: Array) -> dict[str, Array]:
    """moments, float32 [C, 7]: how many, and sums: of both, of their squares, of their product, and
    of how far apart they are. [B, K, C] each; weights: over 0 where they count.
    """
    real = jnp.sign(weights)
    values = jnp.ones_like(true), true, found, true * true, found * found, true * found
    totals = [(each * real).sum((0, 1)) for each in (*values, jnp.abs(true - found))]
    return {"moments": jnp.stack(totals, axis=1)}


def share(part: float, whole: float) -> float:
    """part / whole, NaN of nothing."""
    return float(part / whole) if whole else math.nan


def of_confusion(table: Any) -> dict[str, float]:
    """accuracy, macro_f1, micro_f1 and matthews of a confusion matrix [C, C].

    macro_f1: the mean over the labels that are there or were found. matthews: of any number of
    labels (Gorodkin 2004, eq. 8), 0 where one side has a single label. Of single labels micro_f1 is
    the accuracy.
    """
    table = np.asarray(table, np.float64)
    right, there, found = np.diag(table), table.sum(1), table.sum(0)
    total = table.sum()
    accuracy = share(right.sum(), total)
    left = total**2 - (found**2).sum()
    below = math.sqrt(left) * math.sqrt(total**2 - (there**2).sum())
    above = right.sum() * total - (there * found).sum()
    return {
        "accuracy": accuracy,
        "macro_f1": _mean_f1(right, found, there),
        "micro_f1": accuracy,
        "matthews": float(above / below) if below else 0.0,
    }


def of_matches(table: Any) -> dict[str, float]:
    """macro_f1 and micro_f1 of labels that are there or not, each by itself, of `matches`."""
    both, found, there = np.asarray(table, np.float64).T
    micro = share(2 * both.sum(), found.sum() + there.sum())
    return {"macro_f1": _mean_f1(both, found, there), "micro_f1": micro}


def of_entities(table: Any) -> dict[str, float]:
    """entity_precision, entity_recall and entity_f1 over all types, of [types, 3] as `matches`; 0
    of nothing, as seqeval has it.
    """
    both, found, there = np.asarray(table, np.float64).sum(0)
    return {
        "entity_precision": both / found if found else 0.0,
        "entity_recall": both / there if there else 0.0,
        "entity_f1": 2 * both / (found + there) if found + there else 0.0,
    }


def calibration(table: Any) -> dict[str, float]:
    """calibration_error: how far confidence is from accuracy, the mean over what is in each bin
    (Guo et al. 2017, eq. 3).
    """
    count, confidence, right = np.asarray(table, np.float64).T
    return {"calibration_error": share(np.abs(confidence - right).sum(), count.sum())}


def of_moments(table: Any) -> dict[str, float]:
    """pearson, the correlation, and mean_absolute_error: means over the numbers of a text.

    pearson is NaN where one side does not vary, or by no more than the rounding of float32 sums:
    numbers far from 0 against their spread are better given as how far they are from their mean.
    """
    n, x, y, xx, yy, xy, off = np.asarray(table, np.float64).T
    with np.errstate(invalid="ignore", divide="ignore"):
        own, other = xx - x * x / n, yy - y * y / n
        told = (own > RESOLVED * xx) & (other > RESOLVED * yy)
        pearson = np.where(told, (xy - x * y / n) / np.sqrt(own * other), np.nan)
    return {
        "pearson": float(np.clip(pearson, -1, 1).mean()),
        "mean_absolute_error": share(off.sum(), n.sum()),
    }


def _mean_f1(both: np.ndarray, found: np.ndarray, there: np.ndarray) -> float:
    seen = found + there > 0
    return float((2 * both[seen] / (found + there)[seen]).mean()) if seen.any() else math.nan
