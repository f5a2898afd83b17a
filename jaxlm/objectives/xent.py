"""Cross-entropy that never holds [tokens, V] at once.

The sequence is cut into chunks, and the gradient is computed in the forward pass, where the chunk's
logits are at hand: three products per chunk instead of four, and no logits are saved.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Logits = Callable[[Any, Array], Array]

CHUNK_BYTES = 2**25
"""Most bytes of float32 logits at once on a CPU; accelerators take 16 times as many."""


class Loss(NamedTuple):
    """Sums over the tokens, float32 scalars.

    The gradient is that of loss + z_loss: who adds one to what is differentiated adds both.
    """

    loss: Array
    z_loss: Array
    correct: Array


def cross_entropy(
    logits: Logits,
    head: Any,
    x: Array,
    targets: Array,
    weights: Array,
    *,
    z: float,
    shards: int = 1,
) -> Loss:
    """Weighted softmax cross-entropy of `logits(head, x)`, with z * log(Z)^2 added.

    x [B, L, D]; targets [B, L] int32; weights [B, L] float32; logits -> [B, l, V] float32.
    `shards`: devices that the batch is split over. Gradients flow to head and x alone.
    """
    shapes = jax.eval_shape(logits, head, x[:, :1])
    count = chunks(x.shape[0] // shards or 1, x.shape[1], shapes.shape[-1])
    return _cross_entropy(logits, z, count, head, x, targets, weights)


def chunks(rows: int, length: int, vocab: int) -> int:
    """Parts, a divisor of length, so that the logits of one stay under `chunk_bytes`."""
    least = -(-rows * length * vocab * 4 // chunk_bytes())
    return next((n for n in range(least, length) if length % n == 0), length)


def chunk_bytes() -> int:
    """Most bytes of float32 logits at once on a device of the kind that computes here.

    An accelerator's products want thousands of rows, and each chunk reads and writes the whole
    gradient of the head once.
    """
    return CHUNK_BYTES if jax.default_backend() == "cpu" else 16 * CHUNK_BYTES


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _cross_entropy(
    logits: Logits, z: float, count: int, head: Any, x: Array, targets: Array, weights: Array
) -> Loss:
    def one(total: Loss, part: tuple[Array, ...]) -> tuple[Loss, None]:
        x, targets, weights = part
        sums, _ = _softmax(logits(head, x), targets, weights, z)
        return jax.tree.map(jnp.add, total, sums), None

    return jax.lax.scan(one, _zero(), _split(count, x, targets, weights))[0]


def _forward(
    logits: Logits, z: float, count: int, head: Any, x: Array, targets: Array, weights: Array
) -> tuple[Loss, tuple[Any, Array]]:
    def one(carry: tuple[Loss, Any], part: tuple[Array, ...]) -> tuple[tuple[Loss, Any], Array]:
        total, dhead = carry
        x, targets, weights = part
        scores, pullback = jax.vjp(logits, head, x)
        sums, dscores = _softmax(scores, targets, weights, z)
        dh, dx = pullback(dscores)
        dhead = jax.tree.map(lambda a, b: a + b.astype(a.dtype), dhead, dh)
        return (jax.tree.map(jnp.add, total, sums), dhead), dx

    dhead = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), head)
    parts = _split(count, x, targets, weights)
    (total, dhead), dx = jax.lax.scan(one, (_zero(), dhead), parts)
    dx = jnp.moveaxis(dx, 0, 1).reshape(x.shape)
    return total, (jax.tree.map(lambda d, h: d.astype(h.dtype), dhead, head), dx)


def _backward(
    logits: Logits, z: float, count: int, saved: tuple[Any, Array], grad: Loss
) -> tuple[Any, ...]:
    dhead, dx = jax.tree.map(lambda leaf: leaf * grad.loss.astype(leaf.dtype), saved)
    return dhead, dx, None, None


_cross_entropy.defvjp(_forward, _backward)


def _softmax(scores: Array, targets: Array, weights: Array, z: float) -> tuple[Loss, Array]:
    """Sums of one chunk, and the gradient of their total: [B, l, V] scores, [B, l] the others."""
    top = scores.max(-1, keepdims=True)
    powers = jnp.exp(scores - top)
    norm = powers.sum(-1, keepdims=True)
    log_z = (top + jnp.log(norm))[..., 0]
    hit = jnp.arange(scores.shape[-1])[None, None, :] == targets[..., None]
    target = jnp.where(hit, scores, 0.0).sum(-1)
    loss = ((log_z - target) * weights).sum()
    z_loss = z * (jnp.square(log_z) * weights).sum()
    correct = ((target >= top[..., 0]) * weights).sum()
    pull = (weights * (1 + 2 * z * log_z))[..., None] / norm
    dscores = powers * pull - jnp.where(hit, weights[..., None], 0.0)
    return Loss(loss, z_loss, correct), dscores


def _zero() -> Loss:
    return Loss(*(jnp.zeros((), jnp.float32) for _ in Loss._fields))


def _split(count: int, *arrays: Array) -> tuple[Array, ...]:
    """[B, L, ...] -> [count, B, L / count, ...]: the sequence is cut, the batch stays whole."""
    return tuple(jnp.moveaxis(a.reshape(a.shape[0], count, -1, *a.shape[2:]), 1, 0) for a in arrays)
