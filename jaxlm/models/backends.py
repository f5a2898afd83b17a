"""The backends of attention, which one a device gets, and how they run on a mesh.

Kernels cannot be partitioned automatically, so on a mesh every backend runs inside shard_map, over
batch and heads. Positions of segment 0 are padding and attend among themselves: no row is empty.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout
from jaxlm.models.flash import chunked
from jaxlm.models.gpu import cudnn
from jaxlm.models.scores import Scores, full
from jaxlm.models.tpu import splash

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
    source: Array | None = None,
    prefix: Array | None = None,
) -> Array:
    """Attention within segments: q [B, L, N, H], k and v [B, S, K, H], segments [B, L] int32.

    Segments None: each row is one. bias: added to scores by distance, float32 [N, D] (see
    `spread`). source: segments of the keys, int32 [B, S], where they are another sequence's than
    the queries'. prefix: true at the first positions of each segment that all of it sees, [B, L].
    No kernel has these: they take `chunked`, or `full` when asked for. Returns [B, L, N, H] in q's
    type. Fewer kv heads than shards of the heads are repeated.
    """
    if how.window >= q.shape[1]:
        how = how._replace(window=0)
    more = {name: x for name, x in (("source", source), ("prefix", prefix)) if x is not None}
    if more or bias is not None:
        chosen = "full" if backend == "full" else "chunked"
    else:
        chosen = choose(backend, layout.platform, q.dtype, q.shape[-1], q.shape[1], how)

    def run(q: Array, k: Array, v: Array, rows: dict[str, Any], bias: Array | None) -> Array:
        biases = {} if bias is None else {"bias": bias}
        return BACKENDS[chosen](q, k, v, how=how, **rows, **biases)

    return _over_mesh(run, layout, (q, k, v), {"segments": segments, **more}, bias)


def _over_mesh(
    run: Callable[..., Array],
    layout: Layout,
    heads: tuple[Array, Array, Array],
    rows: dict[str, Any],
    bias: Array | None,
) -> Array:
    """run(q, k, v, rows, bias) on each device's own rows and heads."""
    q, k, v = heads
    if layout.mesh.size == 1:
        return run(q, k, v, rows, bias)
    shards = layout.size("heads")
    repeats = shards // math.gcd(shards, k.shape[2])
    if repeats > 1:
        k, v = (jnp.repeat(x, repeats, axis=2) for x in (k, v))
    by_head, by_row = layout.spec(("batch", None, "heads", None)), layout.spec(("batch", None))
    specs = (*(by_head,) * 3, by_row, layout.spec(("heads", None)))
    return jax.shard_map(run, mesh=layout.mesh, in_specs=specs, out_specs=by_head, check_vma=False)(
        q, k, v, rows, bias
    )
