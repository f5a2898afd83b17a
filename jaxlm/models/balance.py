"""How evenly routers spread tokens over experts, and what a loss adds so that they do.

What a router did is kept as sums of each row, so that devices meet once, after the last layer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.models.spec import ModelSpec


class Routed(NamedTuple):
    """What routers did with the tokens of each row that are no filler: sums, float32."""

    chosen: Array
    """[layers, B, E]: how often each expert was chosen."""
    share: Array
    """[layers, B, E]: of the softmax over experts."""
    z: Array
    """[layers, B]: of log(Z)^2, Z the softmax's denominator."""
    tokens: Array
    """[layers, B]: how many there were."""


class Aux(NamedTuple):
    """What a network adds to an objective: means over the tokens of its batch."""

    loss: dict[str, Array]
    """Terms of the loss, weighted."""
    figures: dict[str, Array]
    """What is only reported."""


def routed(scores: Array, share: Array, chosen: Array, segments: Array | None) -> Routed:
    """Of one layer: scores and their softmax [B, L, E] float32, chosen [B, L, C] int32.

    segments [B, L] int32: 0 is filler; None: nothing is.
    """
    shape = scores.shape[:2]
    real = jnp.ones(shape) if segments is None else (segments > 0).astype(jnp.float32)
    times = jax.nn.one_hot(chosen, scores.shape[-1]).sum(2)
    square = jnp.square(jax.nn.logsumexp(scores, axis=-1))
    over = (times * real[..., None], share * real[..., None], square * real, real)
    return Routed(*(x.sum(1) for x in over))


def auxiliary(spec: ModelSpec, found: Routed | None) -> Aux:
    """Of all layers: balance_loss, router_z_loss, and expert_load.

    expert_load: how many times its even share the busiest expert of a layer has, a mean over
    layers; 1 is even. Nothing of a dense model.
    """
    if found is None:
        return Aux({}, {})
    terms = {
        "balance_loss": (spec.balance_loss, balance_loss(found)),
        "router_z_loss": (spec.router_z_loss, z_loss(found)),
    }
    loss = {name: weight * term for name, (weight, term) in terms.items() if weight}
    times = found.chosen.sum(1)
    even = jnp.maximum(times.mean(-1), 1e-9)
    return Aux(loss, {"expert_load": (times.max(-1) / even).mean()})


def balance_loss(found: Routed) -> Array:
    """E times the sum over experts of how often each is chosen and its mean share (Fedus et al.
    2021, eq. 4), both over all layers together, as transformers' load_balancing_loss_func has it.

    Even routing of C experts per token gives C, the least.
    """
    tokens = jnp.maximum(found.tokens.sum(), 1)
    times, share = (x.sum((0, 1)) / tokens for x in (found.chosen, found.share))
    return times.size * (times * share).sum()


def z_loss(found: Routed) -> Array:
    """The mean of log(Z)^2 over tokens and layers (Zoph et al. 2022, eq. 5)."""
    return found.z.sum() / jnp.maximum(found.tokens.sum(), 1)
