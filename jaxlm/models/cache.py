"""The cache of keys and values for generation, and attention over it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlm.models.scores import Scores, spread, weighted


class KeyValues(NamedTuple):
    """The cache as the layers see it: keys, values [layers, B, S, K, H], and where to write."""

    keys: Array
    values: Array
    start: Array
    may: Array
    """[layers, B, S] bool: which positions hold a token that may be looked at."""
    source_keys: Array | None = None
    """Of an encoder-decoder's source, once it is read: [layers, B, S', K, H]."""
    source_values: Array | None = None


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
    source: tuple[Array, Array] | None = None
    """Keys and values of an encoder-decoder's source, [layers, B, S', K, H]."""
    source_segments: Array | None = None
    """[B, S'] int32, 0 for padding; None: the source has none."""

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
        return KeyValues(self.keys, self.values, start, may, *(self.source or ()))

    def with_values(self, kv: KeyValues) -> "Cache":
        """The cache after the layers wrote into it."""
        read = kv.source_keys is not None and kv.source_values is not None
        source = (kv.source_keys, kv.source_values) if read else None
        return self._replace(keys=kv.keys, values=kv.values, filled=kv.start[0], source=source)


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
    return cache._replace(keys=keys, values=values, start=cache.start + k.shape[1])


def attend_cached(
    q: Array,
    cache: KeyValues,
    segments: Array | None,
    how: Scores,
    *,
    windowed: Array | bool,
    bias: Array | None = None,
    prefix: bool = False,
) -> Array:
    """q [B, L, N, H], the last L positions written, over everything before and themselves.

    segments: [B, L], 0 for padding, which looks at every written column, so that it has no empty
    row; None: no padding. windowed: whether this layer has the window of `how`. bias: added to
    scores by distance, float32 [N, 2 x S - 1]. prefix: what is written first sees all of itself.
    """
    length, size = q.shape[1], cache.keys.shape[1]
    at, columns = cache.start - length + jnp.arange(length), jnp.arange(size)
    places = jnp.where(cache.start == length, 0, columns) if prefix else columns
    before = (places[None] <= at[:, None])[None]
    near = how.near(at, places) | ~jnp.asarray(windowed)
    may = before & near[None] & cache.may[:, None, :]
    if segments is not None:
        may |= before & (segments == 0)[:, :, None]
    if bias is not None:
        bias = spread(bias, at[0], length, slice(0, size))
    return weighted(q, cache.keys, cache.values, may, how, bias)
