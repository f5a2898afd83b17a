"""Attention in blocks, in plain jnp, for every device: memory grows with L, not with L^2.

Scores of one block at a time, computed again in the backward pass (Dao et al. 2022, Alg. 1 and 4).
Blocks above the causal diagonal are never computed. On a CPU a few heads at a time, so that a
block's scores stay in the cache: half the time of all heads at once, and a fraction of the memory.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxlm.models.scores import NEVER, Scores

CACHED_BYTES = 2**18
"""Scores of one block per core of a CPU: what its second-level cache holds beside the operands."""


def chunked(q: Array, k: Array, v: Array, segments: Array | None, how: Scores) -> Array:
    """q [B, L, N, H]; k, v [B, L, K, H]; segments [B, L], None: each row is one.

    Returns [B, L, N, H] in q's type.
    """
    batch, length, heads, size = q.shape
    kv_heads = k.shape[2]
    if segments is None:
        segments = jnp.ones((batch, length), jnp.int32)
    q = q.reshape(batch, length, kv_heads, -1, size).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    q, k, v = (x.reshape(batch * kv_heads, *x.shape[2:]) for x in (q, k, v))
    y: Any = _flash(q, k, v, jnp.repeat(segments, kv_heads, axis=0), how)
    y = y.reshape(batch, kv_heads, -1, length, size).transpose(0, 3, 1, 2, 4)
    return y.reshape(batch, length, heads, size)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _flash(q: Array, k: Array, v: Array, segments: Array, how: Scores) -> Array:
    return _forward(q, k, v, segments, how)[0]


def _forward(
    q: Array, k: Array, v: Array, segments: Array, how: Scores
) -> tuple[Array, tuple[Array, ...]]:
    """q [M, G, L, H]; k, v [M, L, H]; segments [M, L], M rows and kv heads together.

    Returns y like q, and what the backward pass needs.
    """
    y, lse = _some_at_a_time(partial(_attend, how), q, k, v, segments)
    y, lse = checkpoint_name(y, "attention"), checkpoint_name(lse, "attention")
    return y, (q, k, v, segments, y, lse)


def _backward(how: Scores, saved: tuple[Array, ...], dy: Array) -> tuple[Array | None, ...]:
    return *_some_at_a_time(partial(_gradients, how), *saved, dy), None


_flash.defvjp(_forward, _backward)


def _attend(how: Scores, head: tuple[Array, ...]) -> tuple[Array, Array]:
    """One kv head of one row: q [G, L, H]; k, v [L, H]; segments [L].

    Returns y like q, and the logarithm of each query's sum of powers [G, L, 1] float32.
    """
    q, k, v, segments = head
    outs, lses = [], []
    for rows, cols in _spans(q.shape[1], how):
        scores, _ = _scores(q, k, segments, rows, cols, how)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        y = jnp.einsum("gls,sh->glh", weights.astype(v.dtype), v[cols])
        outs.append((y / total).astype(q.dtype))
        lses.append(top + jnp.log(total))
    return jnp.concatenate(outs, axis=1), jnp.concatenate(lses, axis=1)


def _gradients(how: Scores, head: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """dq, dk, dv of one kv head of one row; dk and dv are summed in float32."""
    q, k, v, segments, y, lse, dy = head
    delta = (dy.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1, keepdims=True)
    dqs = []
    # Kept [H, L]: then the narrow operand of these products is transposed, and not the scores.
    dk = dv = jnp.zeros(k.shape[::-1], jnp.float32)
    for rows, cols in _spans(q.shape[1], how):
        scores, slope = _scores(q, k, segments, rows, cols, how)
        weights = jnp.exp(scores - lse[:, rows])
        dweights = jnp.einsum("glh,sh->gls", dy[:, rows], v[cols]).astype(jnp.float32)
        dscores = weights * (dweights - delta[:, rows]) * slope
        dscores = (dscores * how.scale).astype(q.dtype)
        dqs.append(jnp.einsum("gls,sh->glh", dscores, k[cols]))
        dvs = jnp.einsum("glh,gls->hs", dy[:, rows], weights.astype(v.dtype))
        dks = jnp.einsum("glh,gls->hs", q[:, rows], dscores)
        dv, dk = dv.at[:, cols].add(dvs.astype(dv.dtype)), dk.at[:, cols].add(dks.astype(dk.dtype))
    return jnp.concatenate(dqs, axis=1), dk.T.astype(k.dtype), dv.T.astype(v.dtype)


def _scores(
    q: Array, k: Array, segments: Array, rows: slice, cols: slice, how: Scores
) -> tuple[Array, Array | float]:
    """Scores [G, l, s] float32 of one block, forbidden pairs at NEVER, and their slope."""
    scores, slope = how.of(jnp.einsum("glh,sh->gls", q[:, rows], k[cols]))
    may = segments[rows, None] == segments[None, cols]
    may &= how.near(jnp.arange(rows.start, rows.stop), jnp.arange(cols.start, cols.stop))
    return jnp.where(may[None], scores, NEVER), slope


def _spans(length: int, how: Scores) -> list[tuple[slice, slice]]:
    """(queries, keys they may see) of each block."""
    step = _block(length)
    starts = range(0, length, step)
    ends = [min(start + step, length) for start in starts]
    return [
        (slice(start, end), how.reach(start, end, length))
        for start, end in zip(starts, ends, strict=True)
    ]


def _block(length: int) -> int:
    """Queries per block: sixteen blocks at most, so that the program stays small."""
    return min(length, max(128, -(-length // 16)))


def _some_at_a_time(one: Callable[..., Any], q: Array, *more: Array) -> Any:
    """`one((q[i], ...))` for every kv head i of every row: in a loop on a CPU, else all at once."""
    count, groups, length, _ = q.shape
    together = count
    if jax.default_backend() == "cpu":
        fitting = CACHED_BYTES * (os.cpu_count() or 1) // (groups * _block(length) * length * 4)
        together = next(n for n in range(max(1, min(fitting, count)), 0, -1) if count % n == 0)
    return jax.lax.map(one, (q, *more), batch_size=together)
