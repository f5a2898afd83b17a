"""Attention as it is defined: which pairs of positions have a score, and what scores are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

NEVER = -1e30
"""Score of a forbidden pair; finite, so that a row of nothing else has no NaN."""


class Scores(NamedTuple):
    """What a layer does to the products of queries and keys. Static: it is part of the program."""

    scale: float
    """What products are multiplied by."""
    causal: bool = True
    """A query sees nothing after itself."""
    window: int = 0
    """A query sees so many positions, itself included; 0 is all."""
    cap: float = 0.0
    """Scores s become cap x tanh(s / cap); 0 leaves them."""

    def of(self, products: Array) -> tuple[Array, Array | float]:
        """Scores of products q k, float32 of the same shape, and their slope before the scale."""
        scores = products.astype(jnp.float32) * self.scale
        if not self.cap:
            return scores, 1.0
        share = jnp.tanh(scores / self.cap)
        return self.cap * share, 1 - share * share

    def near(self, queries: Array, keys: Array) -> Array:
        """Which pairs may look at all, bool [L, S], of positions [L] and [S] in the row."""
        apart = queries[:, None] - keys[None, :]
        may = apart >= 0 if self.causal else jnp.ones(apart.shape, bool)
        return may & (jnp.abs(apart) < self.window) if self.window else may

    def reach(self, start: int, end: int, length: int) -> slice:
        """The keys that queries from `start` to `end` can see, of a row of `length`."""
        first = max(0, start - self.window + 1) if self.window else 0
        last = end if self.causal else min(length, end + self.window - 1)
        return slice(first, last if self.causal or self.window else length)


def weighted(
    q: Array, k: Array, v: Array, may: Array, how: Scores, bias: Array | None = None
) -> Array:
    """Softmax attention (Vaswani et al. 2017, eq. 1) with every score in memory: the reference.

    q [B, L, N, H]; k, v [B, S, K, H], N a multiple of K; may [B or 1, L, S] bool: which pairs;
    bias [N, L, S] float32: added to scores. Returns [B, L, N, H].
    """
    heads = k.shape[2]
    q = q.reshape(*q.shape[:2], heads, -1, q.shape[3])
    scores, _ = how.of(jnp.einsum("blkgh,bskh->bkgls", q, k))
    if bias is not None:
        scores += bias.reshape(1, heads, -1, *bias.shape[1:])
    weights = jax.nn.softmax(jnp.where(may[:, None, None], scores, NEVER), axis=-1)
    y = jnp.einsum("bkgls,bskh->blkgh", weights.astype(v.dtype), v)
    return y.reshape(*y.shape[:2], -1, y.shape[-1])


def full(
    q: Array, k: Array, v: Array, segments: Array | None, how: Scores, bias: Array | None = None
) -> Array:
    """The reference of every backend: q [B, L, N, H], k and v [B, L, K, H], segments [B, L].

    Segments None: each row is one. bias [N, L, L]: added to scores. Returns [B, L, N, H].
    """
    at = jnp.arange(q.shape[1])
    may = how.near(at, at)[None]
    if segments is not None:
        may &= segments[:, :, None] == segments[:, None, :]
    return weighted(q, k, v, may, how, bias)
