"""From scores to the next token: greedy, temperature, top-k, top-p."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.core.errors import ConfigError


def check(max_tokens: int, temperature: float, top_p: float, top_k: int, seed: int) -> None:
    """Raise ConfigError for settings that mean nothing."""
    if max_tokens < 1:
        raise ConfigError("--max-tokens", f"{max_tokens} is not positive; use 1 or more")
    if not 0 <= temperature <= 1000:
        raise ConfigError("--temperature", f"{temperature} is not in [0, 1000]; 0 is greedy")
    if not 0 < top_p <= 1:
        raise ConfigError("--top-p", f"{top_p} is not in (0, 1]; 1 keeps every token")
    if top_k < 0:
        raise ConfigError("--top-k", f"{top_k} is negative; 0 keeps every token")
    if not 0 <= seed < 2**32:
        raise ConfigError("--seed", f"{seed} is not in [0, 2^32); use a smaller number")


def sample(scores: Array, keys: Array, temperature: Array, top_p: Array, top_k: Array) -> Array:
    """The next token of each row, int32 [B].

    scores: [B, V] float32. keys: [B]. temperature, top_p float32 [], top_k int32 []: temperature 0
    takes the highest score, top_p keeps the smallest set of tokens with that probability (Holtzman
    et al. 2020, section 3.1), top_k the k highest (0: all).
    """
    greedy = scores.argmax(-1).astype(jnp.int32)
    scaled = scores / jnp.maximum(temperature, 1e-6)
    order = jnp.argsort(-scaled, axis=-1)
    ranked = jnp.take_along_axis(scaled, order, axis=-1)
    share = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(share, axis=-1) - share
    rank = jnp.arange(scores.shape[-1])[None, :]
    kept = (before < top_p) & ((rank < top_k) | (top_k == 0))
    kept |= rank == 0  # rounding must not empty the set
    drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(kept, ranked, -jnp.inf))
    chosen = jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)
    return jnp.where(temperature == 0, greedy, chosen)
