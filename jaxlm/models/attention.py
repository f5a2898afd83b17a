"""Attention within a sequence, and its backends.

Kernels cannot be partitioned automatically, so on a mesh every backend runs inside shard_map, over
batch and heads. Positions of segment 0 are padding and attend among themselves: no row is empty.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout
from jaxlm.models.cache import KeyValues, attend_cached, write_cache
from jaxlm.models.dense import Dense, together
from jaxlm.models.flash import chunked
from jaxlm.models.gpu import cudnn
from jaxlm.models.layers import Normalize, residual_scale
from jaxlm.models.rope import rotate
from jaxlm.models.scores import Scores, full
from jaxlm.models.spec import ModelSpec
from jaxlm.models.tpu import splash


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values, over the sequence or over a cache."""

    spec: ModelSpec
    layout: Layout
    dtype: DTypeLike
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        segments: Array | None,
        turn: Any,
        bias: Array | None,
        cache: KeyValues | None,
        near: Any,
        keys: Array | None = None,
    ) -> tuple[Array, KeyValues | None]:
        """near: whether this layer has the spec's window, bool or bool []; others as in Shared."""
        spec = self.spec
        q, k, v = together([projected(spec, self.dtype, part) for part in "qkv"], x, keys)
        if spec.norm.qk != "none":
            q, k = self._normalized(q, "q_norm"), self._normalized(k, "k_norm")
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        how = Scores(query_scale(spec), self.causal, spec.window.size, spec.scale.scores_cap)
        if cache is None:
            y = self._attend((q, k, v), segments, bias, how, near)
        else:
            cache = write_cache(cache, k, v)
            y = attend_cached(q, cache, segments, how, windowed=near, bias=bias)
        return projected(spec, self.dtype, "o")(y, keys), cache

    def _normalized(self, x: Array, name: str) -> Array:
        together = x.reshape(*x.shape[:2], -1) if self.spec.norm.qk == "all" else x
        return Normalize(self.spec.norm, name=name)(together).reshape(x.shape)

    def _attend(
        self,
        heads: tuple[Array, Array, Array],
        segments: Array | None,
        bias: Array | None,
        how: Scores,
        near: Any,
    ) -> Array:
        attend = partial(attention, layout=self.layout, backend=self.spec.attention, bias=bias)
        if isinstance(near, bool):
            how = how if near else how._replace(window=0)
            return attend(*heads, segments, how=how)
        return jax.lax.cond(  # both are in the program, and a layer runs its own
            near,
            partial(attend, how=how),
            partial(attend, how=how._replace(window=0)),
            *(*heads, segments),
        )


def projected(spec: ModelSpec, dtype: DTypeLike, part: str) -> Dense:
    """One of an attention's projections: q, k, v or o."""
    embed, size, init = (spec.embed,), spec.head_dim, spec.init_scale
    if part == "o":
        scale = residual_scale(spec)
        return Dense((spec.heads, size), embed, dtype, spec.bias.out, scale, name=part)
    heads = spec.heads if part == "q" else spec.kv_heads
    return Dense(embed, (heads, size), dtype, spec.bias.qkv, init, name=part)


def query_scale(spec: ModelSpec) -> float:
    """What products of queries and keys are multiplied by."""
    return spec.scale.query or spec.head_dim**-0.5


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
    bias: Array | None = None,
) -> Array:
    """Attention within segments: q [B, L, N, H], k and v [B, L, K, H], segments [B, L] int32.

    Segments None: each row is one. bias: added to scores, float32 [N, L, L]; no backend but `full`
    has it. Returns [B, L, N, H] in q's type. Fewer kv heads than shards of the heads are repeated.
    """
    if how.window >= q.shape[1]:
        how = how._replace(window=0)
    platform = layout.mesh.devices.flat[0].platform
    if bias is not None:

        def run(q: Array, k: Array, v: Array, segments: Array | None, bias: Array) -> Array:
            return full(q, k, v, segments, how, bias)

        return over_mesh(run, layout, (q, k, v), (segments,), bias)
    chosen = choose(backend, platform, q.dtype, q.shape[-1], q.shape[1], how)
    return over_mesh(partial(BACKENDS[chosen], how=how), layout, (q, k, v), (segments,))


def over_mesh(
    run: Callable[..., Array],
    layout: Layout,
    heads: tuple[Array, Array, Array],
    rows: tuple[Array | None, ...],
    bias: Array | None = None,
) -> Array:
    """run(q, k, v, *rows[, bias]) on each device's own rows and heads."""
    q, k, v = heads
    more = () if bias is None else (bias,)
    if layout.mesh.size == 1:
        return run(q, k, v, *rows, *more)
    shards = layout.size("heads")
    repeats = shards // math.gcd(shards, k.shape[2])
    if repeats > 1:
        k, v = (jnp.repeat(x, repeats, axis=2) for x in (k, v))
    by_head, by_row = layout.spec(("batch", None, "heads", None)), layout.spec(("batch", None))
    specs = (by_head,) * 3 + (by_row,) * len(rows)
    specs += (layout.spec(("heads", None, None)),) * len(more)
    return jax.shard_map(run, mesh=layout.mesh, in_specs=specs, out_specs=by_head, check_vma=False)(
        q, k, v, *rows, *more
    )
