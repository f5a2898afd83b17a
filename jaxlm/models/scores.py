"""Attention as it is defined: which pairs of positions have a score, and what scores are."""

from functools import partial
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
        """Which pairs may look at all, bool [L, S], of positions [L] and [S] in the row.

        Of keys that are a prompt's, which all of their segment see, see `places`.
        """
        apart = queries[:, None] - keys[None, :]
        may = apart >= 0 if self.causal else jnp.ones(apart.shape, bool)
        return may & (jnp.abs(apart) < self.window) if self.window else may

    def reach(self, start: int, end: int, length: int) -> slice:
        """The keys that queries from `start` to `end` can see, of a row of `length`."""
        first = max(0, start - self.window + 1) if self.window else 0
        last = end if self.causal else min(length, end + self.window - 1)
        return slice(first, last if self.causal or self.window else length)


def places(prefix: Array | None, count: int) -> Array:
    """Positions of keys as queries see them, int32 [count] or like prefix [..., count].

    Where prefix is true a key stands at the beginning: nobody in its segment comes before it.
    """
    at = jnp.arange(count)
    return at if prefix is None else jnp.where(prefix, 0, at)


def spread(bias: Array, start: Array | int, count: int, keys: slice) -> Array:
    """Biases by distance as those of pairs: [..., D] -> [..., count, keys].

    The middle of D is a query's bias of its own position, and what comes after it that of later
    ones. For `count` queries from position `start` on. Copies and slices alone, and so is the
    gradient: numbers are picked out one by one where they are indexed.
    """
    length = count + keys.stop - keys.start  # of all distances, and one more
    first = keys.start - start - count + 1 + bias.shape[-1] // 2
    near = jax.lax.dynamic_slice_in_dim(bias, first, length - 1, axis=-1)
    # Repeated and cut one shorter, each row is the one before, moved by one.
    turned = jnp.roll(jnp.pad(near, [(0, 0)] * (near.ndim - 1) + [(0, 1)]), 1 - count, axis=-1)
    again = jnp.broadcast_to(turned[..., None, :], (*turned.shape[:-1], count, length))
    flat = again.reshape(*turned.shape[:-1], -1)[..., : count * (length - 1)]
    return flat.reshape(*turned.shape[:-1], count, length - 1)[..., : keys.stop - keys.start]


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
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    how: Scores,
    *,
    bias: Array | None = None,
    source: Array | None = None,
    prefix: Array | None = None,
) -> Array:
    """The reference of every backend: q [B, L, N, H], k and v [B, S, K, H], segments [B, L].

    Segments None: each row is one. bias [N, D]: added to scores, by distance. source [B, S]: the
    segments of keys that are another sequence's. prefix [B, L]: true where all of the segment look.
    Returns [B, L, N, H].
    """
    near = partial(how.near, jnp.arange(q.shape[1]))
    may = jax.vmap(near)(jnp.atleast_2d(places(prefix, k.shape[1])))
    if segments is not None:
        theirs = segments if source is None else source
        may &= segments[:, :, None] == theirs[:, None, :]
    if bias is not None:
        bias = spread(bias, 0, q.shape[1], slice(0, k.shape[1]))
    return weighted(q, k, v, may, how, bias)
