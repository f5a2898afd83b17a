"""Attention within a sequence, or over the cache of one."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax import Array
from jax.typing import DTypeLike

from jaxlm.core.mesh import Layout
from jaxlm.models.backends import attention
from jaxlm.models.cache import KeyValues, attend_cached, write_cache
from jaxlm.models.dense import Dense, together
from jaxlm.models.layers import Normalize, residual_scale
from jaxlm.models.rope import rotate
from jaxlm.models.scores import Scores
from jaxlm.models.spec import ModelSpec


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values, over the sequence or over a cache."""

    spec: ModelSpec
    layout: Layout
    dtype: DTypeLike
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        segments: Array | None,
        turn: Any,
        bias: Array | None,
        cache: KeyValues | None,
        near: Any,
        keys: Array | None = None,
        prefix: Array | None = None,
    ) -> tuple[Array, KeyValues | None]:
        """near: whether this layer has the spec's window, bool or bool []; others as in Shared."""
        spec = self.spec
        q, k, v = together([projected(spec, self.dtype, part) for part in "qkv"], x, keys)
        if spec.norm.qk != "none":
            q, k = self._normalized(q, "q_norm"), self._normalized(k, "k_norm")
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        how = Scores(query_scale(spec), self.causal, spec.window.size, spec.scale.scores_cap)
        if cache is None:
            y = self._attend((q, k, v), segments, bias, how, near, prefix)
        else:
            cache = write_cache(cache, k, v)
            more = {"windowed": near, "bias": bias, "prefix": spec.prefix}
            y = attend_cached(q, cache, segments, how, **more)
        return projected(spec, self.dtype, "o")(y, keys), cache

    def _normalized(self, x: Array, name: str) -> Array:
        together = x.reshape(*x.shape[:2], -1) if self.spec.norm.qk == "all" else x
        return Normalize(self.spec.norm, name=name)(together).reshape(x.shape)

    def _attend(
        self,
        heads: tuple[Array, Array, Array],
        segments: Array | None,
        bias: Array | None,
        how: Scores,
        near: Any,
        prefix: Array | None,
    ) -> Array:
        more = {"bias": bias, "prefix": prefix, "backend": self.spec.attention}
        attend = partial(attention, layout=self.layout, **more)
        if isinstance(near, bool):
            how = how if near else how._replace(window=0)
            return attend(*heads, segments, how=how)
        return jax.lax.cond(  # both are in the program, and a layer runs its own
            near,
            partial(attend, how=how),
            partial(attend, how=how._replace(window=0)),
            *(*heads, segments),
        )


def projected(spec: ModelSpec, dtype: DTypeLike, part: str) -> Dense:
    """One of an attention's projections: q, k, v or o."""
    embed, size, init = (spec.embed,), spec.head_dim, spec.init_scale
    if part == "o":
        scale = residual_scale(spec)
        return Dense((spec.heads, size), embed, dtype, spec.bias.out, scale, name=part)
    heads = spec.heads if part == "q" else spec.kv_heads
    return Dense(embed, (heads, size), dtype, spec.bias.qkv, init, name=part)


def query_scale(spec: ModelSpec) -> float:
    """What products of queries and keys are multiplied by."""
    return spec.scale.query or spec.head_dim**-0.5
