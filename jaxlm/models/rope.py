"""Rotary positions (Su et al. 2021), and how their wave lengths stretch for longer sequences."""

import math

import jax.numpy as jnp
from jax import Array

from jaxlm.models.spec import Rope

Turn = tuple[Array, Array]
"""Cosines and sines [B, L, R / 2], float32, R the dimensions of a head that turn."""


def rotary(positions: Array, head_dim: int, rope: Rope, max_length: int = 0) -> Turn:
    """The turns of int positions [B, L] (Su et al. 2021, eq. 34), stretched as `rope` says.

    max_length: the longest sequence that longrope was trained for.
    """
    frequency = _frequency(rope.theta, int(head_dim * rope.share) // 2 * 2)
    frequency, factor = _stretched(rope, frequency, positions, max_length)
    angle = positions.astype(jnp.float32)[..., None] * frequency[None, None, :]
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def rotate(x: Array, turn: Turn) -> Array:
    """x [B, L, N, H] turned by its position; halves are pairs, as Hugging Face lays them out."""
    cos, sin = (t[:, :, None, :].astype(x.dtype) for t in turn)
    size = 2 * cos.shape[-1]
    first, second = jnp.split(x[..., :size], 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, x[..., size:]] if size < x.shape[-1] else turned, axis=-1)


def _frequency(theta: float | Array, size: int) -> Array:
    return theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)


def _stretched(
    rope: Rope, frequency: Array, positions: Array, max_length: int
) -> tuple[Array, float]:
    """(frequencies [R / 2], what cosines and sines are multiplied by) of a scaling."""
    size, original = 2 * frequency.shape[0], rope.original_length
    if rope.scaling == "linear":  # Chen et al. 2023, eq. 4
        return frequency / rope.factor, 1.0
    if rope.scaling == "llama3":
        turns = original * frequency / (2 * math.pi)  # over the trained length
        low, high = rope.low_freq_factor, rope.high_freq_factor
        kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        return frequency * (kept + (1 - kept) / rope.factor), 1.0
    if rope.scaling == "dynamic":  # the base grows with the longest sequence of the batch
        length = jnp.maximum(positions.max() + 1, original).astype(jnp.float32)
        growth = rope.factor * length / original - (rope.factor - 1)
        return _frequency(rope.theta * growth ** (size / (size - 2)), size), 1.0
    if rope.scaling == "yarn":  # Peng et al. 2023, eq. 22 to 25
        first, last = (
            size * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(rope.theta))
            for beta in (rope.beta_fast, rope.beta_slow)
        )
        first, last = max(math.floor(first), 0), min(math.ceil(last), size - 1)
        at = jnp.arange(size // 2, dtype=jnp.float32)
        stretched = jnp.clip((at - first) / max(last - first, 1e-3), 0.0, 1.0)
        warmth = 0.1 * math.log(rope.factor) + 1
        factor = rope.attention_factor or warmth
        return frequency * (1 - stretched + stretched / rope.factor), factor
    if rope.scaling == "longrope":  # Ding et al. 2024, eq. 3
        longer = positions.max() >= original
        divisor = jnp.where(longer, jnp.array(rope.long), jnp.array(rope.short))
        growth = max(max_length / original, 1.0)
        factor = rope.attention_factor or math.sqrt(1 + math.log(growth) / math.log(original))
        return frequency / divisor, factor
    return frequency, 1.0
