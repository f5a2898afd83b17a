"""Texts as vectors: the hidden states of a text, pooled and scaled to length 1."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.core.errors import ConfigError
from jaxlm.models.heads import pooled_segments
from jaxlm.models.spec import ModelSpec

POOLS = ("mean", "first", "last")
"""Which state of a text embeds it."""


def pooling(how: str | None, spec: ModelSpec, where: str = "objective.pool") -> str:
    """How texts are embedded: as chosen, else by the mean of an encoder's states, and the last of a
    decoder's, the only one that has seen all.

    Raises ConfigError, under `where`, for none of POOLS and for a decoder's first state, which has
    seen one token.
    """
    if how not in (None, *POOLS):
        raise ConfigError(where, f"{how!r} is none of {', '.join(POOLS)}; use one")
    causal = spec.structure != "encoder"
    if causal and how == "first":
        raise ConfigError(where, "a decoder's first state has seen one token; use last or mean")
    return how or ("last" if causal else "mean")


def embedding(x: Array, segments: Array, count: int, how: str) -> Array:
    """Hidden states x [B, L, D] of several texts a row -> float32 [B, count, D] of length 1.

    segments [B, L] int32: text k + 1 is at place k. how: one of POOLS. Pooled in float32; of a text
    that a row lacks, some vector or zeros.
    """
    states = pooled_segments(x.astype(jnp.float32), segments, count, how)
    squared = (states * states).sum(-1, keepdims=True)
    return states * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
