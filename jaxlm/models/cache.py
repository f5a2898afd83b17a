"""The cache of keys and values for generation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


class KeyValues(NamedTuple):
    """The cache as the layers see it: keys, values [layers, B, S, K, H], and where to write."""

    keys: Array
    values: Array
    start: Array
    may: Array
    """[layers, B, S] bool: which positions hold a token that may be looked at."""


class Cache(NamedTuple):
    """All that came before: keys and values [layers, B, S, K, H], segments [B, S], lengths.

    `filled` is how many of the S columns are written; `counts` [B] how many real tokens each row
    has, so that positions count from a row's first token however much padding stands before it.
    """

    keys: Array
    values: Array
    segments: Array
    filled: Array
    counts: Array
    incoming: Array | None = None
    """[B, L] bool, which of the next tokens are real; None: all."""

    def extend(self, tokens: Array) -> tuple[Array, Array, "Cache"]:
        """(segments [B, L], positions [B, L], the cache with these columns marked as written)."""
        real = jnp.ones(tokens.shape, bool) if self.incoming is None else self.incoming
        seen = jnp.cumsum(real.astype(jnp.int32), axis=1)
        positions = jnp.maximum(self.counts[:, None] + seen - 1, 0)
        segments = jax.lax.dynamic_update_slice(
            self.segments, real.astype(self.segments.dtype), (0, self.filled)
        )
        cache = self._replace(segments=segments, counts=self.counts + seen[:, -1], incoming=None)
        return real.astype(jnp.int32), positions, cache

    def key_values(self) -> KeyValues:
        """One slice per layer, for the scan."""
        layers = self.keys.shape[0]
        start = jnp.broadcast_to(self.filled, (layers,))
        may = jnp.broadcast_to(self.segments == 1, (layers, *self.segments.shape))
        return KeyValues(self.keys, self.values, start, may)

    def with_values(self, kv: KeyValues) -> "Cache":
        """The cache after the layers wrote into it."""
        return self._replace(keys=kv.keys, values=kv.values, filled=kv.start[0])


def empty_cache(
    layers: int, batch: int, size: int, kv_heads: int, head_dim: int, dtype: DTypeLike
) -> Cache:
    """A cache with room for `size` tokens per row."""
    keys = jnp.zeros((layers, batch, size, kv_heads, head_dim), dtype)
    zero = jnp.zeros((), jnp.int32)
    return Cache(
        keys, keys, jnp.zeros((batch, size), jnp.int32), zero, jnp.zeros((batch,), jnp.int32)
    )


def write_cache(cache: KeyValues, k: Array, v: Array) -> KeyValues:
    """One layer's cache with k and v [B, L, K, H] written at `start`."""
    where = (0, cache.start, 0, 0)
    keys = jax.lax.dynamic_update_slice(cache.keys, k.astype(cache.keys.dtype), where)
    values = jax.lax.dynamic_update_slice(cache.values, v.astype(cache.values.dtype), where)
    return KeyValues(keys, values, cache.start + k.shape[1], cache.may)
