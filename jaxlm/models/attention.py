"""Attention and its backends, and the cache of keys and values for generation.

    attention(q, k, v, segments, ...)     training and scoring: a row attends within its segment
    attend_cached(q, cache, segments)     generation: a few queries over all that came before

Kernels cannot be partitioned automatically, so on a mesh every backend runs inside shard_map, over
batch and heads. Positions of segment 0 are padding and attend among themselves: no row is empty.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout
from jaxlm.models.flash import chunked
from jaxlm.models.gpu import cudnn
from jaxlm.models.tpu import splash

NEVER = -1e30
"""Score of a forbidden pair; finite, so that a row of nothing else has no NaN."""


def full(q: Array, k: Array, v: Array, segments: Array | None, *, causal: bool) -> Array:
    """Softmax attention (Vaswani et al. 2017, eq. 1) with every score in memory: the reference.

    q [B, L, N, H]; k, v [B, L, K, H], N a multiple of K; segments [B, L], None: each row
    is one. Returns [B, L, N, H].
    """
    length, groups = q.shape[1], q.shape[2] // k.shape[2]
    if segments is None:
        segments = jnp.ones(q.shape[:2], jnp.int32)
    may = segments[:, :, None] == segments[:, None, :]
    if causal:
        may &= jnp.tril(jnp.ones((length, length), bool))[None]
    q = q.reshape(*q.shape[:2], k.shape[2], groups, q.shape[3])
    scores = jnp.einsum("blkgh,bskh->bkgls", q, k).astype(jnp.float32) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(may[:, None, None], scores, NEVER), axis=-1)
    y = jnp.einsum("bkgls,bskh->blkgh", weights.astype(v.dtype), v)
    return y.reshape(*y.shape[:2], -1, y.shape[-1])


BACKENDS: dict[str, Callable[..., Array]] = {
    "full": full,
    "chunked": chunked,
    "cudnn": cudnn,
    "splash": splash,
}


def choose(backend: str, platform: str, dtype: DTypeLike, head_dim: int, length: int) -> str:
    """The backend for a device: what was asked for, or the fastest that is exact there.

    cuDNN takes 16-bit types and heads of a multiple of 8 up to 128, splash heads
    and sequences of a multiple of 128. Raises ConfigError when a kernel is asked for by name that
    cannot run here.
    """
    sixteen = jnp.dtype(dtype).itemsize == 2
    able = {
        "cudnn": platform in ("gpu", "cuda") and sixteen and head_dim % 8 == 0 and head_dim <= 128,
        "splash": platform == "tpu" and head_dim % 128 == 0 and length % 128 == 0,
    }
    if backend == "auto":
        return next((name for name, ok in able.items() if ok), "chunked")
    if not able.get(backend, True):
        what = f"{jnp.dtype(dtype).name} heads of {head_dim} over {length} tokens on {platform}"
        raise ConfigError("model.attention", f"{backend} cannot run {what}; use auto")
    return backend


def attention(
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    *,
    layout: Layout,
    causal: bool = True,
    backend: str = "auto",
) -> Array:
    """Attention within segments: q [B, L, N, H], k and v [B, L, K, H], segments [B, L] int32.

    Segments None: each row is one. Returns [B, L, N, H] in q's type. Fewer kv heads than shards of
    the heads are repeated.
    """
    platform = layout.mesh.devices.flat[0].platform
    chosen = choose(backend, platform, q.dtype, q.shape[-1], q.shape[1])
    run = partial(BACKENDS[chosen], causal=causal)
    if layout.mesh.size == 1:
        return run(q, k, v, segments)
    shards = layout.size("heads")
    repeats = shards // math.gcd(shards, k.shape[2])
    if repeats > 1:
        k, v = (jnp.repeat(x, repeats, axis=2) for x in (k, v))
    heads, row = layout.spec(("batch", None, "heads", None)), layout.spec(("batch", None))
    return jax.shard_map(
        run, mesh=layout.mesh, in_specs=(heads, heads, heads, row), out_specs=heads, check_vma=False
    )(q, k, v, segments)


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


def attend_cached(q: Array, cache: KeyValues, segments: Array | None) -> Array:
    """q [B, L, N, H], the last L positions written, over everything before and themselves.

    segments: [B, L], 0 for padding, which looks at every written column, so that it has no empty
    row; None: no padding.
    """
    length, size, groups = q.shape[1], cache.keys.shape[1], q.shape[2] // cache.keys.shape[2]
    at = cache.start - length + jnp.arange(length)
    before = jnp.arange(size)[None, None, :] <= at[None, :, None]
    may = before & cache.may[:, None, :]
    if segments is not None:
        may |= before & (segments == 0)[:, :, None]
    q = q.reshape(*q.shape[:2], cache.keys.shape[2], groups, q.shape[3])
    scores = jnp.einsum("blkgh,bskh->bkgls", q, cache.keys).astype(jnp.float32)
    scores = jnp.where(may[:, None, None], scores / math.sqrt(q.shape[-1]), NEVER)
    weights = jax.nn.softmax(scores, axis=-1).astype(cache.values.dtype)
    y = jnp.einsum("bkgls,bskh->blkgh", weights, cache.values)
    return y.reshape(*y.shape[:2], -1, y.shape[-1])
