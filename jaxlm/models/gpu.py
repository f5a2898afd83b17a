"""NVIDIA's fused attention through cuDNN, for one sequence per row and for packed rows.

Never with `mask=`: that becomes a bias of L x L and loses the skipping of blocks. Packed rows go
through jax's private entry with the offsets of each segment, on Hopper and newer, once a self-test
against the portable backend has passed on this device; else they are portable too.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxlm.core import distributed
from jaxlm.core.errors import JaxlmError
from jaxlm.models.flash import chunked
from jaxlm.models.scores import Scores

MOST_SEGMENTS = 64
"""Documents per row that the packed kernel is compiled for; a batch with more is portable."""
TRIAL = Scores(1 / 8)
"""How the self-test's heads of 64 attend."""


def cudnn(q: Array, k: Array, v: Array, segments: Array | None, how: Scores) -> Array:
    """q [B, L, N, H]; k, v [B, L, K, H], 16 bits; segments [B, L] int32, None: each row is one.

    Scores have no cap, and a window only where they are causal. Returns [B, L, N, H].
    """
    if segments is None:
        attend = partial(
            jax.nn.dot_product_attention,
            implementation="cudnn",
            is_causal=how.causal,
            scale=how.scale,
            local_window_size=(how.window - 1, 0) if how.window else None,
        )
        return _kept(attend, q, k, v)
    if how.window or not packed_works():
        return chunked(q, k, v, segments, how)
    lengths, offsets, fits = spans(segments, min(MOST_SEGMENTS, segments.shape[1]))
    result: Any = jax.lax.cond(
        fits,
        lambda *x: _kept(partial(_packed, how=how), *x[:5]),
        lambda q, k, v, *x: chunked(q, k, v, x[-1], how),
        *(q, k, v, lengths, offsets, segments),
    )
    return result


def spans(segments: Array, most: int) -> tuple[Array, Array, Array]:
    """Lengths [B, most] and offsets [B, most + 1] of the runs of equal segments, -1 where unused.

    segments: [B, L]. The padding at a row's end is a run of its own, so that nothing is left out.
    The third result, bool [], is False when a row has more than `most` runs.
    """
    length = segments.shape[1]
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    at = jnp.where(starts, jnp.arange(length)[None], length)
    begin = jnp.sort(at, axis=1)[:, :most]
    end = jnp.pad(begin[:, 1:], ((0, 0), (0, 1)), constant_values=length)
    used = begin < length
    lengths = jnp.where(used, end - begin, -1).astype(jnp.int32)
    offsets = jnp.where(used, begin, -1).astype(jnp.int32)
    offsets = jnp.pad(offsets, ((0, 0), (0, 1)), constant_values=-1)
    return lengths, offsets, starts.sum(1).max() <= most


def _packed(q: Array, k: Array, v: Array, lengths: Array, offsets: Array, *, how: Scores) -> Array:
    from jax._src.cudnn import fused_attention_stablehlo as fused

    # The private entry counts the offsets of keys in query heads: grouped heads are repeated.
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    kind = fused.MaskType.PADDING_CAUSAL if how.causal else fused.MaskType.PADDING
    attend: Any = fused.dot_product_attention
    return attend(
        q,
        k,
        v,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=how.scale,
        mask_type=kind,
    )


def _kept(attend: Callable[..., Array], q: Array, k: Array, v: Array, *where: Array) -> Array:
    """`attend` whose result and statistics carry the name that rematerialization keeps.

    Named outside, the kernel would run a second time in the backward pass: its statistics are only
    visible inside the rule. `where`: integers that it takes too; the rule may not close over them.
    """

    @jax.custom_vjp
    def run(q: Array, k: Array, v: Array, *where: Array) -> Array:
        return attend(q, k, v, *where)

    def forward(q: Array, k: Array, v: Array, *where: Array) -> tuple[Array, Any]:
        y, pullback = jax.vjp(lambda *x: attend(*x, *where), q, k, v)
        y = checkpoint_name(y, "attention")
        leaves, shape = jax.tree.flatten(pullback)
        like_y = [leaf.shape == y.shape and leaf.dtype == y.dtype for leaf in leaves]
        last = max(i for i, same in enumerate(like_y) if same)
        leaves = [
            y
            if i == last
            else checkpoint_name(leaf, "attention")
            if leaf.dtype == jnp.float32
            else leaf
            for i, leaf in enumerate(leaves)
        ]
        return y, jax.tree.unflatten(shape, leaves)

    run.defvjp(forward, lambda pullback, dy: (*pullback(dy), *(None for _ in where)))
    result: Any = run(q, k, v, *where)
    return result


@cache
def packed_works() -> bool:
    """Whether the packed kernel exists here and agrees with the portable one, forward and backward.

    Runs two tiny cases on the first device, once.
    """
    device = jax.devices()[0]
    if device.platform != "gpu" or float(getattr(device, "compute_capability", 0)) < 9.0:
        return False
    with jax.ensure_compile_time_eval():
        works = agrees(_run_packed)
    # One program on every host: if it fails on one, none uses it.
    return "False" not in distributed.gather("packed attention", str(works))


def agrees(attend: Callable[..., Array]) -> bool:
    """Whether `attend(q, k, v, segments)` gives the portable backend's values and gradients, within
    bfloat16's rounding, on a packed case with grouped heads and padding.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    q, dy = (jax.random.normal(key, (2, 256, 4, 64), jnp.bfloat16) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, 256, 2, 64), jnp.bfloat16) for key in keys[2:])
    edges = jnp.array([[3, 130, 131, 220], [64, 128, 192, 256]])
    at = jnp.arange(256)[None, None]
    segments = 1 + (at >= edges[..., None]).sum(1).astype(jnp.int32)
    segments = jnp.where(segments > 4, 0, segments)

    def run(attend: Callable[..., Array], *arrays: Array) -> tuple[Array, ...]:
        @jax.jit  # one program, not one for each operation
        def both(q: Array, k: Array, v: Array, dy: Array) -> tuple[Array, ...]:
            y, pullback = jax.vjp(lambda *x: attend(*x, segments), q, k, v)
            return y, *pullback(dy)

        return both(*arrays)

    wide = (x.astype(jnp.float32) for x in (q, k, v, dy))
    right = run(partial(chunked, how=TRIAL), *wide)
    try:
        found = run(attend, q, k, v, dy)
    except JaxlmError:
        raise
    except Exception:  # whatever the private entry raises, the portable backend is right
        return False
    close = [
        jnp.abs(a.astype(jnp.float32) - b).max() <= 0.04 * jnp.abs(b).max()
        for a, b in zip(found, right, strict=True)
    ]
    return bool(jnp.stack(close).all())


def _run_packed(q: Array, k: Array, v: Array, segments: Array) -> Array:
    lengths, offsets, _ = spans(segments, 8)
    return _kept(partial(_packed, how=TRIAL), q, k, v, lengths, offsets)
