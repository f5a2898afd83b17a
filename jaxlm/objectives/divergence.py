"""How far a network has moved from another, token by token, without [tokens, V] at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.objectives import xent
from jaxlm.objectives.xent import Logits

Base = Callable[[Any], Any]
"""From parameters to those of the network that is moved away from."""
Side = tuple[Any, Array]
"""What `logits` takes: the leaves of a head, and hidden states [B, L, D]."""
Known = tuple[Array, Array]
"""What is kept of a network's distributions: ids int32 [B, L, K] and their log-probabilities."""


def divergence(
    logits: Logits, base: Side, tuned: Side, weights: Array, *, shards: int = 1
) -> Array:
    """The sum of weights [B, L] x KL(base || tuned) over the vocabulary, float32 [], in nats.

    `shards`: devices that the batch is split over. Gradients flow to `tuned` alone; they compute
    each chunk's logits once more.
    """
    head, x = tuned
    cut = xent.cut(logits, head, x, shards)

    @jax.checkpoint
    def one(total: Array, part: tuple[Array, ...]) -> tuple[Array, None]:
        def group(before: Array, x: Array, weights: Array) -> Array:
            p = jax.nn.log_softmax(jax.lax.stop_gradient(logits(base[0], before)))
            q = jax.nn.log_softmax(logits(head, x))
            return ((jnp.exp(p) * (p - q)).sum(-1) * weights).sum()

        return total + jax.vmap(group)(*part), None

    total, _ = jax.lax.scan(one, jnp.zeros(cut.groups), cut.parts(base[1], x, weights))
    return total.sum()


def likeliest(logits: Logits, side: Side, count: int, *, shards: int = 1) -> Known:
    """The `count` likeliest ids at each token, with their log-probabilities, float32."""
    head, x = side
    cut = xent.cut(logits, head, x, shards)

    def one(_: None, part: tuple[Array, ...]) -> tuple[None, tuple[Array, Array]]:
        def group(x: Array) -> tuple[Array, Array]:
            return jax.lax.top_k(jax.nn.log_softmax(logits(head, x)), count)

        return None, jax.vmap(group)(*part)

    values, ids = jax.lax.scan(one, None, cut.parts(x))[1]
    return cut.whole(ids, x.shape[1]), cut.whole(values, x.shape[1])


def divergence_from(
    logits: Logits, known: Known, tuned: Side, weights: Array, *, shards: int = 1
) -> Array:
    """At most what `divergence` is, of a base of which its likeliest ids are known.

    All other ids are taken together as one: merging outcomes never adds to a divergence (Cover and
    Thomas 2006, theorem 2.8.1).
    """
    head, x = tuned
    cut = xent.cut(logits, head, x, shards)

    def one(total: Array, part: tuple[Array, ...]) -> tuple[Array, None]:
        def group(ids: Array, p: Array, x: Array, weights: Array) -> Array:
            q = jnp.take_along_axis(jax.nn.log_softmax(logits(head, x)), ids, axis=-1)
            p, q = _with_rest(p), _with_rest(q)
            return ((jnp.exp(p) * (p - q)).sum(-1) * weights).sum()

        return total + jax.vmap(group)(*part), None

    total, _ = jax.lax.scan(one, jnp.zeros(cut.groups), cut.parts(*known, x, weights))
    return total.sum()


def _with_rest(logs: Array) -> Array:
    """Log-probabilities [..., K] with that of all others [..., K + 1]."""
    rest = jnp.maximum(1 - jnp.exp(logs).sum(-1, keepdims=True), 1e-7)
    return jnp.concatenate([logs, jnp.log(rest)], -1)
