"""Attention in blocks, in plain jnp, for every device: memory grows with L, not with L^2.

Scores of 128 queries at a time, computed again in the backward pass (Dao et al. 2022, Alg. 1, 4).
Blocks above the causal diagonal are never computed. On a CPU a few heads at a time, so that a
block's scores stay in the cache: half the time of all heads at once, and a fraction of the memory.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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

    def block(cols: slice, none: None, q: Array, at: Array, own: Array) -> tuple[None, Any]:
        scores, _ = _scores(q, k[cols], at[0], _places(cols), own[0], segments[cols], how)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        y = _product("gls,sh->glh", weights.astype(v.dtype), v[cols]) / total
        return none, (y.astype(q.dtype), top + jnp.log(total))

    rows = q, jnp.arange(q.shape[1])[None], segments[None]
    found = [
        span.over(partial(block, span.cols), None, *rows)[1] for span in _spans(q.shape[1], how)
    ]
    y, lse = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return y, lse


def _gradients(how: Scores, head: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """dq, dk, dv of one kv head of one row; dk and dv are summed in float32."""
    q, k, v, segments, y, lse, dy = head
    delta = (dy.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1, keepdims=True)

    def block(cols: slice, carry: Any, *rows: Array) -> tuple[Any, Array]:
        q, dy, lse, delta, at, own = rows
        scores, slope = _scores(q, k[cols], at[0], _places(cols), own[0], segments[cols], how)
        weights = jnp.exp(scores - lse)
        dweights = _product("glh,sh->gls", dy, v[cols])
        dscores = weights * (dweights - delta) * slope
        dscores = (dscores * how.scale).astype(q.dtype)
        dk = carry[0].at[:, cols].add(_product("glh,gls->hs", q, dscores))
        dv = carry[1].at[:, cols].add(_product("glh,gls->hs", dy, weights.astype(v.dtype)))
        return (dk, dv), _product("gls,sh->glh", dscores, k[cols]).astype(q.dtype)

    # Kept [H, L]: then the narrow operand of these products is transposed, and not the scores.
    carry, dqs = (jnp.zeros(k.shape[::-1], jnp.float32),) * 2, []
    rows = q, dy, lse, delta, jnp.arange(q.shape[1])[None], segments[None]
    for span in _spans(q.shape[1], how):
        carry, dq = span.over(partial(block, span.cols), carry, *rows)
        dqs.append(dq)
    dk, dv = carry
    return jnp.concatenate(dqs, axis=1), dk.T.astype(k.dtype), dv.T.astype(v.dtype)


def _product(axes: str, a: Array, b: Array) -> Array:
    """float32, whatever the operands are: their sums are not rounded to 16 bits in between."""
    if jax.default_backend() == "cpu":  # which has no such product of 16-bit operands
        return jnp.einsum(axes, a, b).astype(jnp.float32)
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _places(span: slice) -> Array:
    return jnp.arange(span.start, span.stop)


def _scores(
    q: Array, k: Array, at: Array, places: Array, own: Array, segments: Array, how: Scores
) -> tuple[Array, Array | float]:
    """Scores [G, l, s] float32 of queries at `at` [l] in segments `own`, and their slope.

    k [s, H] at `places` [s] in `segments` [s]. Forbidden pairs are at NEVER.
    """
    scores, slope = how.of(_product("glh,sh->gls", q, k))
    may = (own[:, None] == segments[None]) & how.near(at, places)
    return jnp.where(may[None], scores, NEVER), slope


class _Span(NamedTuple):
    """`count` blocks of `size` queries from `start` on, and the keys that they may see."""

    start: int
    count: int
    size: int
    cols: slice

    def over(self, block: Callable[..., Any], carry: Any, *rows: Array) -> tuple[Any, Any]:
        """block(carry, the block's part of each of `rows` [G, L, ...]) -> carry, parts; in turn.

        Returns the last carry and the parts [G, count x size, ...].
        """
        rows = tuple(x[:, self.start : self.start + self.count * self.size] for x in rows)
        if self.count == 1:
            return block(carry, *rows)
        cut = tuple(x.reshape(x.shape[0], self.count, self.size, *x.shape[2:]) for x in rows)
        parts = tuple(jnp.moveaxis(x, 1, 0) for x in cut)
        carry, found = jax.lax.scan(lambda carry, part: block(carry, *part), carry, parts)

        def joined(x: Array) -> Array:
            x = jnp.moveaxis(x, 0, 1)
            return x.reshape(x.shape[0], -1, *x.shape[3:])

        return carry, jax.tree.map(joined, found)


def _spans(length: int, how: Scores) -> list[_Span]:
    """All queries of a row: sixteen spans at most, so that the program stays small."""
    step = min(length, _block(length) * -(-length // (16 * _block(length))))
    spans = []
    for start in range(0, length, step):
        end = min(start + step, length)
        size = min(_block(length), end - start)
        whole = (end - start) // size
        for first, count, rows in (
            (start, whole, size),
            (start + whole * size, 1, (end - start) % size),
        ):
            if rows:
                last = first + count * rows
                spans.append(_Span(first, count, rows, how.reach(first, last, length)))
    return spans


def _block(length: int) -> int:
    """Queries per block."""
    return min(length, 128)


def _some_at_a_time(one: Callable[..., Any], q: Array, *more: Array) -> Any:
    """`one((q[i], ...))` for every kv head i of every row: in a loop on a CPU, else all at once."""
    count, groups, length, _ = q.shape
    together = count
    if jax.default_backend() == "cpu":
        fitting = CACHED_BYTES * (os.cpu_count() or 1) // (groups * _block(length) * length * 4)
        together = next(n for n in range(max(1, min(fitting, count)), 0, -1) if count % n == 0)
    return jax.lax.map(one, (q, *more), batch_size=together)
