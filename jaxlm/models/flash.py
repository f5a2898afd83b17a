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

from jaxlm.core.platform import target
from jaxlm.models.scores import NEVER, Scores, places, spread

CACHED_BYTES = 2**19
"""Scores of one block per core of a CPU: what its second-level cache holds beside the operands."""
LOOPED_BYTES = 2**20
"""Scores per core of a CPU from which on a loop over heads is worth what it costs."""


def chunked(
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    how: Scores,
    *,
    bias: Array | None = None,
    source: Array | None = None,
    prefix: Array | None = None,
) -> Array:
    """q [B, L, N, H]; k, v [B, S, K, H]; segments [B, L], None: each row is one.

    bias [N, D] float32: added to scores, by distance (scores.spread). source [B, S]: the segments
    of keys that are another sequence's. prefix [B, L]: true where all of the segment look. Returns
    [B, L, N, H] in q's type.
    """
    batch, length, heads, size = q.shape
    kv_heads = k.shape[2]
    if segments is None:
        segments = jnp.ones((batch, length), jnp.int32)
    q = q.reshape(batch, length, kv_heads, -1, size).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    q, k, v = (x.reshape(batch * kv_heads, *x.shape[2:]) for x in (q, k, v))
    row = _Row(
        segments,
        segments if source is None else source,
        None if prefix is None else places(prefix, length),
    )
    row = jax.tree.map(lambda x: jnp.repeat(x, kv_heads, axis=0), row)
    if bias is not None:
        bias = jnp.tile(bias.reshape(kv_heads, -1, bias.shape[1]), (batch, 1, 1))
    y: Any = _flash(q, k, v, bias, row, how)
    y = y.reshape(batch, kv_heads, -1, length, size).transpose(0, 3, 1, 2, 4)
    return y.reshape(batch, length, heads, size)


class _Row(NamedTuple):
    """What decides which pairs of a row may look, beside their places."""

    own: Array
    """Segments of queries [..., L]."""
    theirs: Array
    """Segments of keys [..., S]."""
    places: Array | None
    """Where keys stand [..., S], if not each at its own place (scores.places)."""

    def spans(self, how: Scores) -> "list[_Span]":
        """The blocks of queries, with keys after them only where some are seen from before."""
        how = how if self.places is None else how._replace(causal=False)
        return _spans(self.own.shape[0], self.theirs.shape[0], how)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _flash(q: Array, k: Array, v: Array, bias: Array | None, row: _Row, how: Scores) -> Array:
    return _forward(q, k, v, bias, row, how)[0]


def _forward(
    q: Array, k: Array, v: Array, bias: Array | None, row: _Row, how: Scores
) -> tuple[Array, tuple[Any, ...]]:
    """q [M, G, L, H]; k, v [M, S, H]; bias [M, G, D]; M rows and kv heads together.

    Returns y like q, and what the backward pass needs.
    """
    y, lse = _some_at_a_time(partial(_attend, how), q, k, v, bias, row)
    y, lse = checkpoint_name(y, "attention"), checkpoint_name(lse, "attention")
    return y, (q, k, v, bias, row, y, lse)


def _backward(how: Scores, saved: tuple[Any, ...], dy: Array) -> tuple[Any, ...]:
    return *_some_at_a_time(partial(_gradients, how), *saved, dy), None


_flash.defvjp(_forward, _backward)


def _attend(how: Scores, head: tuple[Any, ...]) -> tuple[Array, Array]:
    """One kv head of one row: q [G, L, H]; k, v [S, H]; bias [G, D] or None.

    Returns y like q, and the logarithm of each query's sum of powers [G, L, 1] float32.
    """
    q, k, v, bias, row = head

    def block(cols: slice, none: None, q: Array, at: Array, own: Array) -> tuple[None, Any]:
        biases = None if bias is None else spread(bias, at[0, 0], q.shape[1], cols)
        seen = _seen(at[0], own[0], row, cols, how)
        scores, _ = _scores(q, k[cols], biases, seen, how)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        y = _product("gls,sh->glh", weights.astype(v.dtype), v[cols]) / total
        # Where nothing is seen y is the mean of all values, and nothing learns from it.
        top = jnp.where(top > NEVER, top, -NEVER)
        return none, (y.astype(q.dtype), top + jnp.log(total))

    rows = q, jnp.arange(q.shape[1])[None], row.own[None]
    found = [span.over(partial(block, span.cols), None, *rows)[1] for span in row.spans(how)]
    y, lse = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return y, lse


def _gradients(how: Scores, head: tuple[Any, ...]) -> tuple[Array, Array, Array, Array | None]:
    """dq, dk, dv, dbias of one kv head of one row; all but dq are summed in float32."""
    q, k, v, bias, row, y, lse, dy = head
    delta = (dy.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1, keepdims=True)

    def block(cols: slice, carry: Any, *rows: Array) -> tuple[Any, Array]:
        q, dy, lse, delta, at, own = rows
        biases = pullback = None
        if bias is not None:
            near = partial(spread, start=at[0, 0], count=q.shape[1], keys=cols)
            biases, pullback = jax.vjp(near, bias)
        scores, slope = _scores(q, k[cols], biases, _seen(at[0], own[0], row, cols, how), how)
        weights = jnp.exp(scores - lse)
        dweights = _product("glh,sh->gls", dy, v[cols])
        dscores = weights * (dweights - delta)
        dbias = carry[2] if pullback is None else carry[2] + pullback(dscores)[0]
        dscores = (dscores * slope * how.scale).astype(q.dtype)
        dk = carry[0].at[:, cols].add(_product("glh,gls->hs", q, dscores))
        dv = carry[1].at[:, cols].add(_product("glh,gls->hs", dy, weights.astype(v.dtype)))
        return (dk, dv, dbias), _product("gls,sh->glh", dscores, k[cols]).astype(q.dtype)

    # Kept [H, S]: then the narrow operand of these products is transposed, and not the scores.
    zeros = jnp.zeros(k.shape[::-1], jnp.float32)
    carry, dqs = (zeros, zeros, None if bias is None else jnp.zeros_like(bias)), []
    rows = q, dy, lse, delta, jnp.arange(q.shape[1])[None], row.own[None]
    for span in row.spans(how):
        carry, dq = span.over(partial(block, span.cols), carry, *rows)
        dqs.append(dq)
    dk, dv, dbias = carry
    return jnp.concatenate(dqs, axis=1), dk.T.astype(k.dtype), dv.T.astype(v.dtype), dbias


def _product(axes: str, a: Array, b: Array) -> Array:
    """float32, whatever the operands are: their sums are not rounded to 16 bits in between."""
    if target() == "cpu":  # which has no such product of 16-bit operands
        return jnp.einsum(axes, a, b).astype(jnp.float32)
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _seen(at: Array, own: Array, row: _Row, cols: slice, how: Scores) -> Array:
    """Which pairs of queries at `at` [l], in segments `own` [l], and keys may look, bool [l, s]."""
    same = own[:, None] == row.theirs[cols][None]
    keys = jnp.arange(cols.start, cols.stop) if row.places is None else row.places[cols]
    return same & how.near(at, keys)


def _scores(
    q: Array, k: Array, biases: Array | None, seen: Array, how: Scores
) -> tuple[Array, Array | float]:
    """Scores [G, l, s] float32 of q [G, l, H] and k [s, H], and their slope.

    biases [G, l, s]: added. Pairs that are not `seen` [l, s] are at NEVER.
    """
    scores, slope = how.of(_product("glh,sh->gls", q, k))
    scores = scores if biases is None else scores + biases
    return jnp.where(seen[None], scores, NEVER), slope


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


def _spans(length: int, keys: int, how: Scores) -> list[_Span]:
    """All queries of a row, over so many keys: sixteen spans at most: the program stays small."""
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
                spans.append(_Span(first, count, rows, how.reach(first, last, keys)))
    return spans


def _block(length: int) -> int:
    """Queries per block."""
    return min(length, 128)


def _some_at_a_time(one: Callable[..., Any], q: Array, k: Array, *more: Any) -> Any:
    """`one((q[i], ...))` for every kv head i of every row: in a loop on a CPU, else all at once."""
    count, groups, length, _ = q.shape
    together = count
    if target() == "cpu":
        scores, cores = groups * _block(length) * k.shape[1] * 4, os.cpu_count() or 1
        fitting = CACHED_BYTES * cores // scores if count * scores > LOOPED_BYTES * cores else count
        together = next(n for n in range(max(1, min(fitting, count)), 0, -1) if count % n == 0)
    return jax.lax.map(one, (q, k, *more), batch_size=together)
