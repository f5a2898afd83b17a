"""What tuning takes away: general text scored against what the run began as.

With adapters alone the base is there at every evaluation: the same parameters without them. Else
its loss and its likeliest ids on the few rows are kept in the run's folder from before step 1.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.core import distributed
from jaxlm.core.errors import DataError
from jaxlm.core.mesh import Layout
from jaxlm.core.tree import Params
from jaxlm.data.pipeline import Dataset
from jaxlm.models.transformer import Forward
from jaxlm.objectives.base import Batch
from jaxlm.objectives.divergence import Base, Known, divergence, divergence_from, likeliest
from jaxlm.objectives.xent import cross_entropy
from jaxlm.observe import metrics
from jaxlm.training.evaluate import Gauge, place

FILE = "general.npz"
LIKELIEST = 64
"""Ids that are kept of each distribution of the base."""

Found = dict[str, Array]
Beat = Callable[[], None]


def forgetting(
    data: Dataset, forward: Forward, layout: Layout, folder: Path, *, base: Base | None
) -> Gauge:
    """general_loss, in nats per token; general_change, from what it was; general_kl, KL(base ||
    tuned) per token.

    base: from the parameters to those of the base; None where they are gone. Then general_kl is at
    most the divergence, and both are left out once FILE is lost or is of other rows.
    """
    shards = layout.size("batch")
    size = -(-data.rows // shards) * shards
    batch = place(data, layout, size)(0)

    def with_base(_: int, params: Params, beat: Beat) -> dict[str, float]:
        found = jax.device_get(compared(params, batch))
        beat()
        return _columns(found, float(found["before"]), found["kl"])

    def with_file(step: int, params: Params, beat: Beat) -> dict[str, float]:
        if step == 0:
            _keep(folder / FILE, remember(params, batch), data.digest)
        before, known = _kept(folder / FILE, data.digest, layout)
        found = jax.device_get(scored(params, batch, known))
        beat()
        return _columns(found, before, found.get("kl"))

    if base is None:
        scored = jax.jit(partial(_scored, forward, shards))
        remember = jax.jit(partial(_remember, forward, shards), out_shardings=layout.sharding(()))
        return with_file
    compared = jax.jit(partial(_compared, forward, shards, base))
    return with_base


def too_much(row: dict[str, Any], most: float | None) -> str | None:
    """Why a run with this row of metrics ends, if more is forgotten than `most`."""
    change = row.get("general_change")
    if most is None or change is None or change <= most:
        return None
    return f"ended: the loss on general text has grown by {change:.4g}, which is over {most:g}"


def unknown(row: dict[str, Any], most: float | None) -> str | None:
    """What to say where a run should end by `most`, and what it began as is gone."""
    if most is None or "general_change" in row:
        return None
    return f"{FILE} is lost, or is of other text: evaluate.max_forgetting cannot end this run"


def has_ended(folder: Path, step: int, most: float | None) -> str | None:
    """`too_much` of what a run scored last, if that was at `step`."""
    if most is None:
        return None
    try:
        rows = metrics.read(folder)[-1:]
    except DataError:  # lost or damaged: the next evaluation says it again
        return None
    return next((too_much(row, most) for row in rows if row["step"] == step), None)


def _columns(found: dict[str, Any], before: float | None, kl: Any) -> dict[str, float]:
    weight = float(found["weight"])
    loss = float(found["loss"]) / weight
    columns = {"general_loss": loss}
    if before is not None:
        columns |= {"general_change": loss - before / weight, "general_kl": float(kl) / weight}
    return columns


def _loss(forward: Forward, shards: int, params: Params, hidden: Array, batch: Batch) -> Array:
    head, targets, weights = forward.head(params), batch["targets"], batch["weights"]
    return cross_entropy(forward.logits, head, hidden, targets, weights, z=0.0, shards=shards).loss


def _compared(forward: Forward, shards: int, base: Base, params: Params, batch: Batch) -> Found:
    """Sums: loss, before (of the base) and kl; and what they are divided by."""
    before = base(params)
    was, now = (forward.hidden(each, batch, None)[0] for each in (before, params))
    sides = (forward.head(before), was), (forward.head(params), now)
    return {
        "loss": _loss(forward, shards, params, now, batch),
        "before": _loss(forward, shards, before, was, batch),
        "kl": divergence(forward.logits, *sides, batch["weights"], shards=shards),
        "weight": batch["weights"].sum(),
    }


def _remember(forward: Forward, shards: int, params: Params, batch: Batch) -> Found:
    """The sum of the loss, and the likeliest ids at each token."""
    hidden, _ = forward.hidden(params, batch, None)
    ids, logs = likeliest(forward.logits, (forward.head(params), hidden), LIKELIEST, shards=shards)
    loss = _loss(forward, shards, params, hidden, batch)
    return {"before": loss, "ids": ids, "logs": logs}


def _scored(
    forward: Forward, shards: int, params: Params, batch: Batch, known: Known | None
) -> Found:
    hidden, _ = forward.hidden(params, batch, None)
    weights = batch["weights"]
    found = {"loss": _loss(forward, shards, params, hidden, batch), "weight": weights.sum()}
    if known is not None:
        side = forward.head(params), hidden
        found["kl"] = divergence_from(forward.logits, known, side, weights, shards=shards)
    return found


def _keep(path: Path, found: Found, digest: str) -> None:
    file = io.BytesIO()
    np.savez(file, digest=np.array(digest), **jax.device_get(found))
    distributed.agree("general text", lambda: metrics.replace(path, file.getvalue()))


def _kept(path: Path, digest: str, layout: Layout) -> tuple[float | None, Known | None]:
    """(the sum of the base's loss, what is known of it); nothing where it is of other rows."""
    try:
        with np.load(path) as file:
            if str(file["digest"]) != digest:
                return None, None
            before, ids, logs = float(file["before"]), file["ids"], file["logs"]
    except (OSError, ValueError, KeyError, BadZipFile):
        return None, None
    sharding = layout.sharding(("batch", None, None))
    placed = (
        jax.make_array_from_callback(each.shape, sharding, lambda index, each=each: each[index])
        for each in (jnp.asarray(ids), jnp.asarray(logs))
    )
    ids, logs = placed
    return before, (ids, logs)
