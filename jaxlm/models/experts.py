"""The sparse MLP: each token goes through the few experts that a router chooses for it.

No token is dropped and no expert has a capacity: tokens are sorted by expert, and each group is
multiplied with its own kernel (Gale et al. 2022).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxlm.core.mesh import Layout
from jaxlm.models.dense import Dense
from jaxlm.models.layers import ACTIVATIONS
from jaxlm.models.spec import ModelSpec


class Experts(nn.Module):
    """x [B, L, D] -> [B, L, D]: the chosen experts by their weights (Shazeer et al. 2017, eq. 1).

    On a mesh every device works on its own rows, with its share of each expert's width.
    """

    spec: ModelSpec
    layout: Layout
    dtype: DTypeLike
    out_scale: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        spec, layout, count = self.spec, self.layout, self.spec.experts.count
        normal = nn.initializers.normal
        scores = Dense((spec.embed,), (count,), self.dtype, scale=spec.init_scale, name="router")(x)
        share = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
        weights, chosen = jax.lax.top_k(share, spec.experts.chosen)
        if spec.experts.normalized:
            weights /= weights.sum(-1, keepdims=True)
        wide, narrow = (count, spec.embed, spec.mlp), (count, spec.mlp, spec.embed)
        kernels = (
            Kernel(wide, normal(spec.init_scale), name="gate")(),
            Kernel(wide, normal(spec.init_scale), name="up")(),
            Kernel(narrow, normal(self.out_scale), name="down")(),
        )
        arrays = (x, weights.astype(self.dtype), chosen, *(k.astype(self.dtype) for k in kernels))
        run = partial(sparse, activation=spec.activation)
        if layout.mesh.size == 1:
            return run(*arrays)
        splits = x.shape[0] % layout.size("batch") == 0  # the rows of a short generation may not
        rows = layout.spec(("batch" if splits else None, None, None))
        up, down = layout.spec((None, None, "mlp")), layout.spec((None, "mlp", None))

        def local(*arrays: Array) -> Array:
            return jax.lax.psum(run(*arrays), dict(layout.rules)["mlp"])

        return jax.shard_map(
            local,
            mesh=layout.mesh,
            in_specs=(rows, rows, rows, up, up, down),
            out_specs=rows,
            check_vma=False,
        )(*arrays)


class Kernel(nn.Module):
    """A declared parameter that another function uses."""

    shape: tuple[int, ...]
    initializer: Callable[..., Array]

    @nn.compact
    def __call__(self) -> Array:
        return self.param("kernel", self.initializer, self.shape)


def sparse(
    x: Array, weights: Array, chosen: Array, gate: Array, up: Array, down: Array, *, activation: str
) -> Array:
    """x [B, L, D] through experts chosen [B, L, C] int32 with weights [B, L, C].

    gate, up [E, D, F]; down [E, F, D]. Returns [B, L, D].
    """
    embed, count = x.shape[-1], gate.shape[0]
    flat, each = chosen.reshape(-1), chosen.shape[-1]
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.bincount(flat, length=count).astype(jnp.int32)
    rows = x.reshape(-1, embed)[order // each]

    def product(rows: Array, kernel: Array) -> Array:
        return checkpoint_name(jax.lax.ragged_dot(rows, kernel, sizes), "product")

    hidden = ACTIVATIONS[activation](product(rows, gate)) * product(rows, up)
    y = product(hidden, down)[jnp.argsort(order)]
    y = y.reshape(*chosen.shape, embed) * weights[..., None]
    return y.sum(-2).astype(x.dtype)
