"""TPU splash attention: blocks above the diagonal skipped, segments as ids."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.models.scores import Scores


def splash(q: Array, k: Array, v: Array, segments: Array | None, how: Scores) -> Array:
    """q [B, L, N, H]; k, v [B, L, K, H]; segments [B, L] int32, None: each row is one.

    L a multiple of 128. Returns [B, L, N, H].
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    rows, length, heads, size = q.shape
    groups = heads // k.shape[2]
    shape = (length, length)
    one = masks.CausalMask(shape) if how.causal else masks.FullMask(shape)
    if how.window:
        after = 0 if how.causal else how.window - 1
        one = masks.LocalMask(shape, (how.window - 1, after), 0)
    mask = masks.MultiHeadMask([one] * groups)
    run = kernel.make_splash_mqa_single_device(
        mask,
        residual_checkpoint_name="attention",
        attn_logits_soft_cap=how.cap or None,
    )
    # [B, K, G, L, H]: one multi-query call per row and kv head.
    q = q.reshape(rows, length, k.shape[2], groups, size).transpose(0, 2, 3, 1, 4) * how.scale
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    ids = jnp.ones((rows, length), jnp.int32) if segments is None else segments
    ids = kernel.SegmentIds(ids, ids)
    per_head = jax.vmap(run, in_axes=(0, 0, 0, None))
    y: Any = jax.vmap(per_head)(q, k, v, ids)
    y = y.transpose(0, 3, 1, 2, 4)
    return y.reshape(rows, length, heads, size)
