"""Biases of scores by relative position (Raffel et al. 2020, section 2.1)."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.core.mesh import Layout
from jaxlm.models.spec import ModelSpec


class Relative(nn.Module):
    """One number per head and bucket of distances, shared by a stack's layers."""

    spec: ModelSpec
    causal: bool
    layout: Layout

    @nn.compact
    def __call__(self, length: int) -> Array:
        """float32 [N, 2 x length - 1]: of keys from `length - 1` before a query to as many after.

        By distance, not by pair: of pairs there are `length / 2` times as many (see `spread`).
        """
        relative, init = self.spec.relative, nn.initializers.normal(self.spec.init_scale)
        table = self.param("embedding", init, (relative.buckets, self.spec.heads))
        distances = np.arange(1 - length, length)
        known = buckets(distances, self.causal, relative.buckets, relative.distance)
        biases = table.astype(jnp.float32)[jnp.asarray(known)]
        return self.layout.constrain(biases.T, "heads", None)


def buckets(distances: np.ndarray, causal: bool, count: int, far: int) -> np.ndarray:
    """The bucket, int32, of each distance from a query to a key, negative to the left.

    Half of the buckets are one distance wide each, the others wider and wider up to `far`. An
    encoder has half of all for each side.
    """
    offset, width = np.zeros_like(distances), count
    if not causal:
        width = count // 2
        offset = np.where(distances > 0, width, 0)
    apart = np.maximum(-distances, 0) if causal else np.abs(distances)
    exact = width // 2
    share = np.log(np.maximum(apart, 1).astype(np.float32) / exact) / math.log(far / exact)
    wide = exact + (share * (width - exact)).astype(np.int32)
    return (offset + np.where(apart < exact, apart, np.minimum(wide, width - 1))).astype(np.int32)
