"""Attention and its backends.

    attention(q, k, v, segments, ...)     training and scoring: a row attends within its segment
    attend_cached(q, cache, segments)     generation: a few queries over all that came before

Kernels cannot be partitioned automatically, so on a mesh every backend runs inside shard_map, over
batch and heads. Positions of segment 0 are padding and attend among themselves: no row is empty.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout
from jaxlm.models.cache import KeyValues
from jaxlm.models.flash import chunked
from jaxlm.models.gpu import cudnn
from jaxlm.models.scores import NEVER, Scores
from jaxlm.models.tpu import splash


def full(q: Array, k: Array, v: Array, segments: Array | None, how: Scores) -> Array:
    """Softmax attention (Vaswani et al. 2017, eq. 1) with every score in memory: the reference.

    q [B, L, N, H]; k, v [B, L, K, H], N a multiple of K; segments [B, L], None: each row
    is one. Returns [B, L, N, H].
    """
    at, groups = jnp.arange(q.shape[1]), q.shape[2] // k.shape[2]
    may = how.near(at, at)[None]
    if segments is not None:
        may &= segments[:, :, None] == segments[:, None, :]
    q = q.reshape(*q.shape[:2], k.shape[2], groups, q.shape[3])
    scores, _ = how.of(jnp.einsum("blkgh,bskh->bkgls", q, k))
    weights = jax.nn.softmax(jnp.where(may[:, None, None], scores, NEVER), axis=-1)
    y = jnp.einsum("bkgls,bskh->blkgh", weights.astype(v.dtype), v)
    return y.reshape(*y.shape[:2], -1, y.shape[-1])


BACKENDS: dict[str, Callable[..., Array]] = {
    "full": full,
    "chunked": chunked,
    "cudnn": cudnn,
    "splash": splash,
}


def choose(
    backend: str, platform: str, dtype: DTypeLike, head_dim: int, length: int, how: Scores
) -> str:
    """The backend for a device: what was asked for, or the fastest that is exact there.

    cuDNN takes 16-bit types and heads of a multiple of 8 up to 128, without a cap; splash heads
    and sequences of a multiple of 128. Raises ConfigError when a kernel is asked for by name that
    cannot run here.
    """
    sixteen = jnp.dtype(dtype).itemsize == 2
    fits = sixteen and head_dim % 8 == 0 and head_dim <= 128 and not how.cap
    able = {
        "cudnn": platform in ("gpu", "cuda") and fits and (how.causal or not how.window),
        "splash": platform == "tpu" and head_dim % 128 == 0 and length % 128 == 0,
    }
    if backend == "auto":
        return next((name for name, ok in able.items() if ok), "chunked")
    if not able.get(backend, True):
        capped = " with capped scores" if how.cap else ""
        what = f"{jnp.dtype(dtype).name} heads of {head_dim}{capped} over {length} tokens"
        raise ConfigError("model.attention", f"{backend} cannot run {what} on {platform}; use auto")
    return backend


def attention(
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    *,
    layout: Layout,
    how: Scores,
    backend: str = "auto",
) -> Array:
    """Attention within segments: q [B, L, N, H], k and v [B, L, K, H], segments [B, L] int32.

    Segments None: each row is one. Returns [B, L, N, H] in q's type. Fewer kv heads than shards of
    the heads are repeated.
    """
    if how.window >= q.shape[1]:
        how = how._replace(window=0)
    platform = layout.mesh.devices.flat[0].platform
    chosen = choose(backend, platform, q.dtype, q.shape[-1], q.shape[1], how)
    run = partial(BACKENDS[chosen], how=how)
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


def attend_cached(
    q: Array, cache: KeyValues, segments: Array | None, how: Scores, *, windowed: Array | bool
) -> Array:
    """q [B, L, N, H], the last L positions written, over everything before and themselves.

    segments: [B, L], 0 for padding, which looks at every written column, so that it has no empty
    row; None: no padding. windowed: whether this layer has the window of `how`.
    """
    length, size, groups = q.shape[1], cache.keys.shape[1], q.shape[2] // cache.keys.shape[2]
    at, columns = cache.start - length + jnp.arange(length), jnp.arange(size)
    before = (columns[None] <= at[:, None])[None]
    near = how.near(at, columns) | ~jnp.asarray(windowed)
    may = before & near[None] & cache.may[:, None, :]
    if segments is not None:
        may |= before & (segments == 0)[:, :, None]
    q = q.reshape(*q.shape[:2], cache.keys.shape[2], groups, q.shape[3])
    scores, _ = how.of(jnp.einsum("blkgh,bskh->bkgls", q, cache.keys))
    weights = jax.nn.softmax(jnp.where(may[:, None, None], scores, NEVER), axis=-1)
    y = jnp.einsum("bkgls,bskh->blkgh", weights.astype(cache.values.dtype), cache.values)
    return y.reshape(*y.shape[:2], -1, y.shape[-1])
