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

from jaxlm.core import tree
from jaxlm.core.mesh import Layout, logical_axes
from jaxlm.models import lora
from jaxlm.models.axes import AXES
from jaxlm.models.dense import Dense, beside
from jaxlm.models.layers import ACTIVATIONS
from jaxlm.models.quantize import declared, grouped
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
        kernels = {
            "gate": Declared(wide, normal(spec.init_scale), name="gate")(),
            "up": Declared(wide, normal(spec.init_scale), name="up")(),
            "down": Declared(narrow, normal(self.out_scale), name="down")(),
        }
        kernels = tree.map_named(self._typed, kernels)
        arrays = (x, weights.astype(self.dtype), chosen, kernels)
        run = partial(sparse, activation=spec.activation)
        if layout.mesh.size == 1:
            return run(*arrays)
        splits = x.shape[0] % layout.size("batch") == 0  # the rows of a short generation may not
        rows = layout.spec(("batch" if splits else None, None, None))

        def split(name: str, leaf: Array) -> Any:
            axes = logical_axes(f"experts/{name}", AXES) or ()
            each = zip(axes, leaf.shape, strict=True)  # 1 of what a scale is the same for
            return layout.spec(
                [axis if axis == "mlp" and size > 1 else None for axis, size in each]
            )

        def local(*arrays: Any) -> Array:
            return jax.lax.psum(run(*arrays), dict(layout.rules)["mlp"])

        return jax.shard_map(
            local,
            mesh=layout.mesh,
            in_specs=(rows, rows, rows, tree.map_named(split, kernels)),
            out_specs=rows,
            check_vma=False,
        )(*arrays)

    def _typed(self, name: str, leaf: Array) -> Array:
        """A kernel as it is multiplied, before it meets over devices."""
        return leaf.astype(self.dtype) if name.endswith("/kernel") else leaf


class Declared(nn.Module):
    """A kernel that another function uses, by the names of its leaves and those of its adapter."""

    shape: tuple[int, ...]
    initializer: Callable[..., Array]

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        kernel = declared(self, self.initializer, self.shape)
        return (kernel if isinstance(kernel, dict) else {"kernel": kernel}) | beside(self)


def sparse(
    x: Array,
    weights: Array,
    chosen: Array,
    kernels: dict[str, dict[str, Array]],
    *,
    activation: str,
) -> Array:
    """x [B, L, D] through experts chosen [B, L, C] int32 with weights [B, L, C].

    kernels: gate and up [E, D, F], down [E, F, D], each with the adapters of its experts, if it has
    some. Returns [B, L, D].
    """
    embed, count = x.shape[-1], jax.tree.leaves(kernels)[0].shape[0]
    flat, each = chosen.reshape(-1), chosen.shape[-1]
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.bincount(flat, length=count).astype(jnp.int32)
    rows = x.reshape(-1, embed)[order // each]

    def product(rows: Array, name: str) -> Array:
        leaves = kernels[name]
        own = {part: leaf for part, leaf in leaves.items() if part in lora.PARTS}
        kernel = leaves.get("kernel", {n: x for n, x in leaves.items() if n not in own})
        y = grouped(rows, kernel, sizes)
        if own:
            a, b = jax.vmap(lora.factors)(own)
            low = checkpoint_name(grouped(rows, a, sizes), "product")
            y += grouped(low, b * own["lora_scale"][:, None, None], sizes)
        return checkpoint_name(y, "product")

    hidden = ACTIVATIONS[activation](product(rows, "gate")) * product(rows, "up")
    y = product(hidden, "down")[jnp.argsort(order)]
    y = y.reshape(*chosen.shape, embed) * weights[..., None]
    return y.sum(-2).astype(x.dtype)
