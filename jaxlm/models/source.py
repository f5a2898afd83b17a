"""Attention of an encoder-decoder's target over its source."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlm.core.mesh import Layout
from jaxlm.models.attention import over_mesh, projected, query_scale
from jaxlm.models.cache import KeyValues
from jaxlm.models.dense import together
from jaxlm.models.scores import Scores, weighted
from jaxlm.models.spec import ModelSpec


class Source(NamedTuple):
    """What an encoder-decoder's target is made from."""

    hidden: Array | None
    """The encoder's last hidden states [B, S, D]; None: their keys and values are in the cache."""
    segments: Array | None
    """[B, S] int32: which segment of the target looks at a position; 0 is padding."""


class SourceAttention(nn.Module):
    """A target's positions over all of its source (Vaswani et al. 2017, section 3.2.3)."""

    spec: ModelSpec
    layout: Layout
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Array,
        segments: Array | None,
        source: Source,
        cache: KeyValues | None,
        keys: Array | None = None,
    ) -> tuple[Array, KeyValues | None]:
        """The source's keys and values are made of its hidden states, or taken from the cache."""
        spec = self.spec
        q = projected(spec, self.dtype, "q")(x, keys)
        k, v = (cache.source_keys, cache.source_values) if cache else (None, None)
        if source.hidden is not None:
            both = [projected(spec, self.dtype, part) for part in "kv"]
            k, v = together(both, source.hidden, keys)
            cache = cache and cache._replace(source_keys=k, source_values=v)
        assert k is not None and v is not None
        how = Scores(query_scale(spec), causal=False)
        y = attend_source(q, k, v, segments, source.segments, layout=self.layout, how=how)
        return projected(spec, self.dtype, "o")(y, keys), cache


def attend_source(
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    source_segments: Array | None,
    *,
    layout: Layout,
    how: Scores,
) -> Array:
    """q [B, L, N, H] over the source's k and v [B, S, K, H], of the same segment.

    segments [B, L] and source_segments [B, S] int32; None: each row is segment 1. A query whose
    segment the source lacks sees all of it. Returns [B, L, N, H].
    """
    ones = jnp.ones((q.shape[0], 1), jnp.int32)
    own = ones if segments is None else segments
    theirs = jnp.broadcast_to(ones, k.shape[:2]) if source_segments is None else source_segments

    def run(q: Array, k: Array, v: Array, own: Array, theirs: Array) -> Array:
        may = own[:, :, None] == theirs[:, None, :]
        return weighted(q, k, v, may, how)

    return over_mesh(run, layout, (q, k, v), (own, theirs))
