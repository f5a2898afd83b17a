"""The sparse MLP: each token goes through the few experts that a router chooses for it.

No token is dropped and no expert has a capacity: tokens are sorted by expert, and each group is
multiplied with its own kernel (Gale et al. 2022). Where experts are split over devices these see
each other's tokens, and each computes what its own experts add to them.
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
from jaxlm.models.balance import Routed, routed
from jaxlm.models.dense import Dense, beside
from jaxlm.models.layers import ACTIVATIONS
from jaxlm.models.quantize import declared, grouped
from jaxlm.models.spec import ModelSpec


class Experts(nn.Module):
    """x [B, L, D] -> [B, L, D]: the chosen experts by their weights (Shazeer et al. 2017, eq. 1).

    On a mesh every device works on its own rows, with its share of each expert's width; on the
    axis `expert` it has its share of the experts, gathers the rows of all devices of that axis,
    and gives each the sum of what theirs added to its rows (see docs/clusters.md for the cost).
    """

    spec: ModelSpec
    layout: Layout
    dtype: DTypeLike
    out_scale: float

    @nn.compact
    def __call__(self, x: Array, segments: Array | None) -> tuple[Array, Routed]:
        """segments [B, L] int32: 0 is filler, which no loss of the router counts."""
        spec, count = self.spec, self.spec.experts.count
        normal = nn.initializers.normal
        scores = Dense((spec.embed,), (count,), self.dtype, scale=spec.init_scale, name="router")(x)
        scores = scores.astype(jnp.float32)
        share = jax.nn.softmax(scores, axis=-1)
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
        y = self._over_mesh(x, weights.astype(self.dtype), chosen, kernels)
        return y, routed(scores, share, chosen, segments)

    def _over_mesh(self, *arrays: Any) -> Array:
        """`sparse` of these arrays, each device with its own rows and kernels."""
        layout, (x, *_, kernels) = self.layout, arrays
        run = partial(sparse, activation=self.spec.activation)
        if layout.mesh.size == 1:
            return run(*arrays)
        splits = x.shape[0] % layout.size("batch") == 0  # the rows of a short generation may not
        rows = layout.spec(("batch" if splits else None, None, None))
        parts = layout.mesh.shape["expert"]

        def split(name: str, leaf: Array) -> Any:
            axes = logical_axes(f"experts/{name}", AXES) or ()
            each = zip(axes, leaf.shape, strict=True)  # 1 of what a scale is the same for
            return layout.spec(
                [axis if axis in ("experts", "mlp") and size > 1 else None for axis, size in each]
            )

        def local(x: Array, weights: Array, chosen: Array, kernels: Any) -> Array:
            if parts == 1:
                return jax.lax.psum(run(x, weights, chosen, kernels), "tensor")
            if splits:
                gather = partial(jax.lax.all_gather, axis_name="expert", tiled=True)
                x, weights, chosen = map(gather, (x, weights, chosen))
            first = jax.lax.axis_index("expert") * (self.spec.experts.count // parts)
            y = run(x, weights, chosen, kernels, first=first)
            if not splits:
                return jax.lax.psum(y, ("expert", "tensor"))
            return jax.lax.psum(jax.lax.psum_scatter(y, "expert", tiled=True), "tensor")

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
    first: Array | None = None,
) -> Array:
    """x [B, L, D] through experts chosen [B, L, C] int32 with weights [B, L, C].

    kernels: gate and up [E, D, F], down [E, F, D], each with the adapters of its experts, if it has
    some. first: the number of the first of these experts, where there are others elsewhere, which
    add nothing here. Returns [B, L, D].
    """
    embed, count = x.shape[-1], jax.tree.leaves(kernels)[0].shape[0]
    flat, each = chosen.reshape(-1), chosen.shape[-1]
    here = None
    if first is not None:
        here = (flat >= first) & (flat < first + count)
        flat = jnp.where(here, flat - first, count)  # after all groups
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.bincount(flat, length=count + 1)[:count].astype(jnp.int32)
    rows = _only(x.reshape(-1, embed)[order // each], here if here is None else here[order])

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
    y = _only(product(hidden, "down")[jnp.argsort(order)], here)
    y = y.reshape(*chosen.shape, embed) * weights[..., None]
    return y.sum(-2).astype(x.dtype)


def _only(rows: Array, here: Array | None) -> Array:
    """Rows [T, D] that are `here` [T], and zeros: beyond the last group a kernel may leave any
    number, in the rows and in their gradient.
    """
    return rows if here is None else jnp.where(here[:, None], rows, jnp.zeros((), rows.dtype))
