"""How attention scores are made of products, and which pairs of positions have one."""

from typing import NamedTuple

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
