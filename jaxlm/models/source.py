"""Attention of an encoder-decoder's target over its source."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlm.core.mesh import Layout
from jaxlm.models.attention import projected, query_scale
from jaxlm.models.backends import attention
from jaxlm.models.cache import KeyValues
from jaxlm.models.dense import together
from jaxlm.models.scores import Scores
from jaxlm.models.spec import ModelSpec


class Source(NamedTuple):
    """What an encoder-decoder's target is made from."""

    hidden: Array | None
    """The encoder's last hidden states [B, S, D]; None: their keys and values are in the cache."""
    segments: Array | None
    """[B, S] int32: which segment of the target looks at a position; 0 is padding."""


class SourceAttention(nn.Module):
    """A target's positions over all of its source (Vaswani et al. 2017, section 3.2.3).

    A position whose segment the source lacks, as padding may be, has the mean of all values there.
    """

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
        # Without segments each row is segment 1 on its side: the other may be padded.
        own, theirs = (
            jnp.ones(x.shape[:2], jnp.int32) if rows is None else rows
            for x, rows in ((q, segments), (k, source.segments))
        )
        how = Scores(query_scale(spec), causal=False)
        backend = "full" if cache else spec.attention  # of one query there are few scores
        y = attention(q, k, v, own, source=theirs, layout=self.layout, how=how, backend=backend)
        return projected(spec, self.dtype, "o")(y, keys), cache
