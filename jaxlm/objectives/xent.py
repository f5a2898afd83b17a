"""Cross-entropy that never holds [tokens, V] at once.

The sequence is cut into chunks, and the gradient is computed in the forward pass, where the chunk's
logits are at hand: three products per chunk instead of four, and no logits are saved.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.core.platform import target

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
    return _cross_entropy(logits, z, cut(logits, head, x, shards), head, x, targets, weights)


def cut(logits: Logits, head: Any, x: Array, shards: int) -> "Cut":
    """How hidden states x [B, L, D] are taken apart for `logits(head, x)`."""
    rows, length, _ = x.shape
    groups = math.gcd(rows, shards)
    vocab = jax.eval_shape(logits, head, x[:, :1]).shape[-1]
    return Cut(groups, chunks(rows // groups, length, vocab))


def chunks(rows: int, length: int, vocab: int) -> int:
    """Parts of a length so that the logits of one stay under `chunk_bytes`.

    A divisor of the length, unless its next one is more than twice as many as needed: then the
    length is filled up.
    """
    least = min(length, -(-length // max(1, chunk_bytes() // (rows * vocab * 4))))
    return next((n for n in range(least, 2 * least) if length % n == 0), least)


def chunk_bytes() -> int:
    """Most bytes of float32 logits at once on a device of the kind that computes here.

    An accelerator's products want thousands of rows, and each chunk reads and writes the whole
    gradient of the head once.
    """
    return CHUNK_BYTES if target() == "cpu" else 16 * CHUNK_BYTES


class Cut(NamedTuple):
    """How a batch is taken apart: groups of rows, a device's own each, and chunks of the length."""

    groups: int
    chunks: int

    def parts(self, *arrays: Array) -> tuple[Array, ...]:
        """[B, L, ...] -> [chunks, groups, B / groups, L / chunks, ...], zeros where L is short."""

        def part(array: Array) -> Array:
            length, rest = array.shape[1], array.shape[2:]
            size = -(-length // self.chunks)
            fill = ((0, 0), (0, size * self.chunks - length), *((0, 0) for _ in rest))
            cut = jnp.pad(array, fill).reshape(self.groups, -1, self.chunks, size, *rest)
            return jnp.moveaxis(cut, 2, 0)

        return tuple(part(array) for array in arrays)

    def whole(self, parts: Array, length: int) -> Array:
        """The inverse of `parts` for one array [B, length, ...]."""
        joined = jnp.moveaxis(parts, 0, 2)
        rows = parts.shape[1] * parts.shape[2]
        return joined.reshape(rows, -1, *parts.shape[4:])[:, :length]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _cross_entropy(
    logits: Logits, z: float, cut: Cut, head: Any, x: Array, targets: Array, weights: Array
) -> Loss:
    def group(x: Array, targets: Array, weights: Array) -> Loss:
        return _softmax(logits(head, x), targets, weights, z)[0]

    def one(total: Loss, part: tuple[Array, ...]) -> tuple[Loss, None]:
        return jax.tree.map(jnp.add, total, jax.vmap(group)(*part)), None

    total, _ = jax.lax.scan(one, _zeros(cut, _NOTHING), cut.parts(x, targets, weights))
    return jax.tree.map(lambda leaf: leaf.sum(0), total)


def _forward(
    logits: Logits, z: float, cut: Cut, head: Any, x: Array, targets: Array, weights: Array
) -> tuple[Loss, tuple[Any, Array]]:
    # Each group adds up a gradient of the head of its own. They meet once, after the loop: one
    # gradient for all groups would be reduced over the devices in every chunk.
    def group(x: Array, targets: Array, weights: Array) -> tuple[Loss, Any, Array]:
        scores, pullback = jax.vjp(logits, head, x)
        sums, dscores = _softmax(scores, targets, weights, z)
        return sums, *pullback(dscores)

    def one(total: tuple[Loss, Any], part: tuple[Array, ...]) -> tuple[tuple[Loss, Any], Array]:
        sums, dhead, dx = jax.vmap(group)(*part)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (sums, dhead)), dx

    zeros = _zeros(cut, (_NOTHING, head))
    total, dx = jax.lax.scan(one, zeros, cut.parts(x, targets, weights))
    loss, dhead = jax.tree.map(lambda leaf: leaf.sum(0), total)
    dhead = jax.tree.map(lambda d, h: d.astype(h.dtype), dhead, head)
    return loss, (dhead, cut.whole(dx, x.shape[1]))


def _backward(
    logits: Logits, z: float, cut: Cut, saved: tuple[Any, Array], grad: Loss
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


_NOTHING = Loss._make(np.zeros(3, np.float32))


def _zeros(cut: Cut, like: Any) -> Any:
    """float32 zeros of the shapes of `like`, for every group."""
    return jax.tree.map(lambda leaf: jnp.zeros((cut.groups, *leaf.shape), jnp.float32), like)
