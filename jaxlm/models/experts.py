"""The sparse MLP: each token goes through the few experts that a router chooses for it.

No token is dropped and no expert has a capacity: tokens are sorted by expert, and each group is
multiplied with its own kernel (Gale et al. 2022).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxlm.core.mesh import Layout
from jaxlm.models.dense import Dense
from jaxlm.models.layers import ACTIVATIONS
from jaxlm.models.quantize import Kernel, declared, grouped
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
            Declared(wide, normal(spec.init_scale), name="gate")(),
            Declared(wide, normal(spec.init_scale), name="up")(),
            Declared(narrow, normal(self.out_scale), name="down")(),
        )
        kernels = tuple(k if isinstance(k, dict) else k.astype(self.dtype) for k in kernels)
        arrays = (x, weights.astype(self.dtype), chosen, *kernels)
        run = partial(sparse, activation=spec.activation)
        if layout.mesh.size == 1:
            return run(*arrays)
        splits = x.shape[0] % layout.size("batch") == 0  # the rows of a short generation may not
        rows = layout.spec(("batch" if splits else None, None, None))

        def split(kernel: Kernel, axis: int) -> Any:
            def one(leaf: Array) -> Any:
                wide = leaf.shape[axis] > 1  # but a scale of each output
                return layout.spec([("mlp" if wide and i == axis else None) for i in range(3)])

            return jax.tree.map(one, kernel)

        def local(*arrays: Any) -> Array:
            return jax.lax.psum(run(*arrays), dict(layout.rules)["mlp"])

        return jax.shard_map(
            local,
            mesh=layout.mesh,
            in_specs=(rows, rows, rows, *map(split, kernels, (2, 2, 1))),
            out_specs=rows,
            check_vma=False,
        )(*arrays)


class Declared(nn.Module):
    """A declared parameter that another function uses."""

    shape: tuple[int, ...]
    initializer: Callable[..., Array]

    @nn.compact
    def __call__(self) -> Kernel:
        return declared(self, self.initializer, self.shape)


def sparse(
    x: Array,
    weights: Array,
    chosen: Array,
    gate: Kernel,
    up: Kernel,
    down: Kernel,
    *,
    activation: str,
) -> Array:
    """x [B, L, D] through experts chosen [B, L, C] int32 with weights [B, L, C].

    gate, up [E, D, F]; down [E, F, D]. Returns [B, L, D].
    """
    embed, count = x.shape[-1], jax.tree.leaves(gate)[0].shape[0]
    flat, each = chosen.reshape(-1), chosen.shape[-1]
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.bincount(flat, length=count).astype(jnp.int32)
    rows = x.reshape(-1, embed)[order // each]

    def product(rows: Array, kernel: Kernel) -> Array:
        return checkpoint_name(grouped(rows, kernel, sizes), "product")

    hidden = ACTIVATIONS[activation](product(rows, gate)) * product(rows, up)
    y = product(hidden, down)[jnp.argsort(order)]
    y = y.reshape(*chosen.shape, embed) * weights[..., None]
    return y.sum(-2).astype(x.dtype)
