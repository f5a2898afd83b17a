"""Attention in blocks, in plain jnp, for every device: memory grows with L, not with L^2.

Online softmax in the forward pass, scores computed again in the backward (Dao et al. 2022, Alg. 1
and 4). Blocks above the causal diagonal are never computed.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

NEVER = -1e30


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _flash(q: Array, k: Array, v: Array, segments: Array, causal: bool) -> Array:
    return _forward(q, k, v, segments, causal)[0]


def chunked(q: Array, k: Array, v: Array, segments: Array | None, *, causal: bool) -> Array:
    """q [B, L, N, H]; k, v [B, L, K, H]; segments [B, L], None: each row is one.

    Returns [B, L, N, H] in q's type.
    """
    if segments is None:
        segments = jnp.ones(q.shape[:2], jnp.int32)
    heads = q.shape[2]
    groups = heads // k.shape[2]
    q = q.reshape(*q.shape[:2], k.shape[2], groups, q.shape[3])
    q, k, v = q.transpose(0, 2, 3, 1, 4), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    y: Any = _flash(q, k, v, segments, causal)
    y = y.transpose(0, 3, 1, 2, 4)
    return y.reshape(*y.shape[:2], heads, y.shape[-1])


def _block(length: int) -> int:
    """Queries per block: sixteen blocks at most, so that the program stays small."""
    return min(length, max(128, -(-length // 16)))


def _spans(length: int, causal: bool) -> list[tuple[slice, slice]]:
    """(queries, keys they may see) of each block."""
    step = _block(length)
    starts = range(0, length, step)
    ends = [min(start + step, length) for start in starts]
    return [
        (slice(start, end), slice(0, end if causal else length))
        for start, end in zip(starts, ends, strict=True)
    ]


def _scores(q: Array, k: Array, segments: Array, rows: slice, cols: slice, causal: bool) -> Array:
    """[B, K, G, l, s] float32 of one block, forbidden pairs at NEVER."""
    scores = jnp.einsum("bkglh,bksh->bkgls", q[..., rows, :], k[:, :, cols])
    scores = scores.astype(jnp.float32) / math.sqrt(q.shape[-1])
    may = segments[:, rows, None] == segments[:, None, cols]
    if causal:
        may &= (jnp.arange(rows.start, rows.stop)[:, None] >= jnp.arange(cols.stop)[None])[None]
    return jnp.where(may[:, None, None], scores, NEVER)


def _forward(
    q: Array, k: Array, v: Array, segments: Array, causal: bool
) -> tuple[Array, tuple[Array, ...]]:
    """q [B, K, G, L, H]; k, v [B, K, L, H] -> y like q, and what the backward pass needs."""
    outs, lses = [], []
    for rows, cols in _spans(q.shape[3], causal):
        scores = _scores(q, k, segments, rows, cols, causal)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        y = jnp.einsum("bkgls,bksh->bkglh", weights.astype(v.dtype), v[:, :, cols])
        outs.append((y / total).astype(q.dtype))
        lses.append(top + jnp.log(total))
    y = checkpoint_name(jnp.concatenate(outs, axis=3), "attention")
    lse = checkpoint_name(jnp.concatenate(lses, axis=3), "attention")
    return y, (q, k, v, segments, y, lse)


def _backward(causal: bool, saved: tuple[Array, ...], dy: Array) -> tuple[Array | None, ...]:
    q, k, v, segments, y, lse = saved
    delta = (dy.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1, keepdims=True)
    dqs, scale = [], 1 / math.sqrt(q.shape[-1])
    dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for rows, cols in _spans(q.shape[3], causal):
        scores = _scores(q, k, segments, rows, cols, causal)
        weights = jnp.exp(scores - lse[..., rows, :])
        dyr = dy[..., rows, :]
        dv = dv.at[:, :, cols].add(
            jnp.einsum("bkgls,bkglh->bksh", weights.astype(v.dtype), dyr).astype(jnp.float32)
        )
        dweights = jnp.einsum("bkglh,bksh->bkgls", dyr, v[:, :, cols]).astype(jnp.float32)
        dscores = (weights * (dweights - delta[..., rows, :]) * scale).astype(q.dtype)
        dqs.append(jnp.einsum("bkgls,bksh->bkglh", dscores, k[:, :, cols]))
        dk = dk.at[:, :, cols].add(
            jnp.einsum("bkgls,bkglh->bksh", dscores, q[..., rows, :]).astype(jnp.float32)
        )
    return jnp.concatenate(dqs, axis=3), dk.astype(k.dtype), dv.astype(v.dtype), None


_flash.defvjp(_forward, _backward)
