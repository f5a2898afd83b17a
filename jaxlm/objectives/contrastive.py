"""Embeddings: a text is nearer to the one that belongs to it than to the others of the batch.

InfoNCE (van den Oord et al. 2018, eq. 4) with the batch's other texts as negatives (Karpukhin et
al. 2020, section 3.2) and hard ones of the example's own (Gao et al. 2021, SimCSE, eq. 5).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.objectives.base import Batch, Objective, Sums, Whole, added

Embed = Callable[[Array, Array, int], Array]
"""(hidden states [B, L, D], segments [B, L], K) -> vectors of length 1 of K texts, float32
[B, K, D]."""
ABSENT = -1e9
"""The score of what is no negative: its probability is exactly 0 in float32."""


def contrastive(*, embed: Embed, temperature: float, symmetric: bool) -> Objective:
    """An example a row, its texts the segments 1 to K: anchor, positive, hard negatives.

    The batch has `texts` int32 [B, 2 K]: two words of a hash of each text, so that equal texts are
    known. symmetric: each positive is told from the other anchors too (Radford et al. 2021, CLIP,
    figure 3); the loss is the mean of both ways.
    """

    def represent(
        forward: Any, params: dict[str, Any], batch: Batch, keys: Array | None
    ) -> tuple[Array, Any]:
        hidden, aux = forward.hidden(params, batch, keys)
        count = batch["texts"].shape[1] // 2
        return embed(hidden, batch["segments"], count), aux

    def compare(found: Array, batch: Batch) -> Sums:
        segments, count = batch["segments"], found.shape[1]
        there = (segments[:, None] == jnp.arange(1, count + 1)[None, :, None]).any(2)  # [B, K]
        real = there[:, 0] & there[:, 1]
        exact = jax.lax.Precision.HIGHEST  # divided by a temperature, rounding is large
        scores = jnp.einsum("id,jkd->ijk", found[:, 0], found[:, 1:], precision=exact)
        scores = scores / temperature
        known = (there & real[:, None])[None, :, 1:] & real[:, None, None]
        known &= ~_belonging(batch["texts"])
        known = known.at[:, :, 0].set(known[:, :, 0] | jnp.eye(len(found), dtype=bool))
        scores = jnp.where(known, scores, ABSENT)
        right = jnp.diagonal(scores[:, :, 0])
        loss = jax.nn.logsumexp(scores, axis=(1, 2)) - right
        if symmetric:
            back = jax.nn.logsumexp(scores[:, :, 0], axis=0) - right
            loss = (loss + back) / 2
        rank = (scores >= right[:, None, None]).sum((1, 2))  # what is no better than others is last
        weight = real.astype(jnp.float32)
        extra = {
            "accuracy": weight * (rank == 1),
            "mrr": weight / rank,
            "tokens": (segments > 0).sum(1),
        }
        return Sums(jnp.where(real, loss, 0.0), weight, {}, extra)

    def loss(forward: Any, params: dict[str, Any], batch: Batch, keys: Array | None) -> Sums:
        found, aux = represent(forward, params, batch, keys)
        return added(jax.tree.map(lambda x: x.sum(0), compare(found, batch)), aux)

    return Objective(loss, _scores, Whole(represent, compare))


def _belonging(texts: Array) -> Array:
    """bool [B, B, K - 1]: whether text k of row j may belong to the anchor of row i too.

    It is the text of i's anchor, or of a positive of an anchor with the same text as i's.
    """
    words = texts.reshape(len(texts), -1, 2)

    def same(one: Array, other: Array) -> Array:
        """[B, 2] with [B, n, 2] -> [B, B, n]."""
        pairs = (one[:, None, None, w] == other[None, :, :, w] for w in (0, 1))
        return next(pairs) & next(pairs)

    others = words[:, 1:]
    alike = same(words[:, 0], words[:, :1])[:, :, 0].astype(jnp.float32)
    positives = same(words[:, 1], others).astype(jnp.float32)
    return same(words[:, 0], others) | (jnp.einsum("ij,jrk->irk", alike, positives) > 0)


def _scores(loss: float, weight: float, extra: Mapping[str, Any]) -> dict[str, float]:
    """How often the positive is the nearest of the batch, the mean of one over its rank, and of how
    many examples.
    """
    each = weight or float("nan")
    found = {name: extra[name] / each for name in ("accuracy", "mrr")}
    return {**found, "examples": int(weight)}
