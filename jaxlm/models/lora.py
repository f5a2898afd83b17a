"""Low-rank adapters as leaves beside the kernels (Hu et al. 2021); `Dense` finds them there."""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout, logical_axes
from jaxlm.core.tree import Params
from jaxlm.models.axes import AXES, INPUTS


def add(
    params: Params, layout: Layout, key: Array, *, rank: int, alpha: float, targets: Iterable[str]
) -> Params:
    """`params` with lora_a [..., *in, R], lora_b [..., R, *out] and lora_scale beside each target.

    B starts at zero, so the model is bit for bit what it was. A is uniform as in PEFT (He et al.
    2015 with a = sqrt 5). Raises ConfigError for a pattern that matches no kernel of a block.
    """
    names = sorted(tree.select(params, targets, "lora.targets"))
    leaves = tree.flatten(params)
    kernels = [name for name in names if "blocks/" in name and name.endswith("/kernel")]
    if not kernels:
        raise ConfigError("lora.targets", "no kernel of a block matches; write attn/(q|v)/kernel")
    if bare := [name for name in kernels if "/experts/" in name]:
        raise ConfigError("lora.targets", f"{bare[0]} takes no adapter; write attn/(q|v)/kernel")

    def init(key: Array) -> Params:
        added = {}
        for index, name in enumerate(kernels):
            beside, kernel = name.removesuffix("kernel"), leaves[name]
            split = 1 + INPUTS[(logical_axes(name, AXES) or ())[1:]]
            inputs, outputs = kernel.shape[1:split], kernel.shape[split:]
            bound = 1 / math.sqrt(math.prod(inputs))
            layers, noise = kernel.shape[:1], jax.random.fold_in(key, index)
            a = jax.random.uniform(noise, (*layers, *inputs, rank), minval=-bound, maxval=bound)
            added[beside + "lora_a"] = a
            added[beside + "lora_b"] = jnp.zeros((*layers, rank, *outputs))
            added[beside + "lora_scale"] = jnp.full(layers, alpha / rank)
        return tree.unflatten(added)

    shardings = layout.shardings(jax.eval_shape(init, key), AXES)
    return tree.combine(params, jax.jit(init, out_shardings=shardings)(key))


def merge(params: Params) -> Params:
    """The adapters' products added to their kernels, in float32, and the adapters left out."""
    leaves = dict(tree.flatten(params))
    for name in [name for name in leaves if name.endswith("/lora_a")]:
        beside = name.removesuffix("lora_a")
        a, b, scale = (leaves.pop(beside + f"lora_{part}") for part in ("a", "b", "scale"))
        kernel = leaves[beside + "kernel"]
        flat = jnp.einsum("lir,lro->lio", *_flat(a, b)) * scale[:, None, None]
        merged = kernel.astype(jnp.float32) + flat.reshape(kernel.shape)
        leaves[beside + "kernel"] = merged.astype(kernel.dtype)
    return tree.unflatten(leaves)


def _flat(a: Array, b: Array) -> tuple[Array, Array]:
    rank = a.shape[-1]
    return a.reshape(a.shape[0], -1, rank), b.reshape(b.shape[0], rank, -1)
