"""Low-rank adapters as leaves beside the kernels (Hu et al. 2021); `Dense` finds them there."""

import math
import re
from collections.abc import Iterable, Mapping
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout, logical_axes
from jaxlm.core.tree import Params
from jaxlm.models.axes import AXES, INPUTS

PARTS = ("lora_a", "lora_b", "lora_a0", "lora_b0", "lora_m", "lora_scale", "lora_drop")
"""Leaves of an adapter: A [*in, R] and B [R, *out]; the product that they began as, which is
subtracted, if it was not 0 (PiSSA); each output's magnitude [*out] (DoRA); what the product is
multiplied by, [], or where the ranks are those of n slots, by each row [B, n]; the share of the
input that is dropped, []."""
TRAINED = r"/lora_[abm]$"
"""Those that train."""
NAMED = {
    "attention": r"blocks/(attn|cross)/[qkvo]/kernel$",
    "mlp": r"blocks/mlp/(gate|up|down)/kernel$",
    "all-linear": r"blocks/(attn/[qkvo]|cross/[qkvo]|mlp/(gate|up|down))/kernel$",
}
"""Names of targets, of every stack of the model."""


def add(
    params: Params,
    layout: Layout,
    key: Array,
    *,
    rank: int,
    alpha: float,
    targets: Iterable[str],
    rslora: bool = False,
    dropout: float = 0.0,
    init: str = "default",
    dora: bool = False,
) -> Params:
    """`params` with the leaves of an adapter beside each target.

    B starts at zero, so the model is bit for bit what it was. A is uniform as in PEFT (He et al.
    2015 with a = sqrt 5). init=pissa: A and B are the kernel's first `rank` singular vectors (Meng
    et al. 2024, eq. 2 and 3), and what they begin as is subtracted. rslora: the scale is alpha /
    sqrt(rank) (Kalajdzievski 2023, eq. 7). Raises ConfigError for a target that matches no kernel
    of a block, and for a rank that is larger than one.
    """
    kernels = select(params, targets)
    scale = alpha / (math.sqrt(rank) if rslora else rank)

    def made(key: Array, kernels: dict[str, Array]) -> Params:
        added = {}
        for index, (name, kernel) in enumerate(kernels.items()):
            beside, first = name.removesuffix("kernel"), kernel.shape[:1]
            inputs, outputs = sides(name, kernel.shape)
            if init == "pissa":
                a, b = jax.lax.map(partial(_principal, rank=rank, scale=scale), _flat(name, kernel))
                a, b = a.reshape(*first, *inputs, rank), b.reshape(*first, rank, *outputs)
                added |= {beside + "lora_a0": a, beside + "lora_b0": b}
            else:
                bound, noise = 1 / math.sqrt(math.prod(inputs)), jax.random.fold_in(key, index)
                shape = (*first, *inputs, rank)
                a = jax.random.uniform(noise, shape, minval=-bound, maxval=bound)
                b = jnp.zeros((*first, rank, *outputs))
            added |= {beside + "lora_a": a, beside + "lora_b": b}
            added[beside + "lora_scale"] = jnp.full(first, scale)
            if dropout:
                added[beside + "lora_drop"] = jnp.full(first, dropout)
            if dora:
                square = jnp.square(_flat(name, kernel).astype(jnp.float32)).sum(1)
                added[beside + "lora_m"] = jnp.sqrt(square).reshape(*first, *outputs)
        return tree.unflatten(added)

    for name, kernel in kernels.items():
        if init == "pissa" and rank > (most := min(map(math.prod, sides(name, kernel.shape)))):
            raise ConfigError("lora.rank", f"{rank} is more than {name} has; use {most} or less")
    shardings = layout.shardings(jax.eval_shape(made, key, kernels), AXES)
    return tree.combine(params, jax.jit(made, out_shardings=shardings)(key, kernels))


def select(params: Params, targets: Iterable[str], where: str = "lora.targets") -> dict[str, Array]:
    """The kernels that get an adapter. Raises ConfigError for a target that matches none."""
    targets, leaves = list(targets), tree.flatten(params)
    for target in targets:
        if target in NAMED or any(re.search(target, name) for name in leaves):
            continue
        known = ", ".join(NAMED)
        raise ConfigError(
            where, f"{target!r} matches no parameter; use {known}, or attn/(q|v)/kernel"
        )
    patterns = [NAMED.get(target, target) for target in targets]
    names = sorted(tree.select(params, patterns, where))
    kernels = [name for name in names if "blocks/" in name and name.endswith("/kernel")]
    if not kernels:
        raise ConfigError(where, "no kernel of a block matches; write attn/(q|v)/kernel")
    if bare := [name for name in kernels if "/experts/" in name]:
        raise ConfigError(where, f"{bare[0]} takes no adapter; write attn/(q|v)/kernel")
    return {name: leaves[name] for name in kernels}


@cache
def sides(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the inputs, the outputs) of one layer of the kernel `name`, of `shape` with its layers."""
    split = 1 + INPUTS[(logical_axes(name, AXES) or ())[1:]]
    return shape[1:split], shape[split:]


def factors(leaves: Mapping[str, Array]) -> tuple[Array, Array]:
    """(A [*in, R], B [R, *out]) of one layer of an adapter; with a product to subtract, 2 R."""
    a, b = leaves["lora_a"], leaves["lora_b"]
    if "lora_a0" not in leaves:
        return a, b
    a0, b0 = leaves["lora_a0"], leaves["lora_b0"]
    return jnp.concatenate([a, a0], -1), jnp.concatenate([b, -b0], 0)


def growth(kernel: Array, leaves: Mapping[str, Array]) -> Array:
    """What each output [*out] is multiplied by: its magnitude over the norm of its column of kernel
    + scale A B, which is a constant to the gradient (Liu et al. 2024, section 4.3). float32.
    """
    a, b = factors(leaves)
    rank, scale = a.shape[-1], leaves["lora_scale"]
    a, b = a.reshape(-1, rank), b.reshape(rank, -1)
    w = kernel.reshape(a.shape[0], -1)
    dot = partial(jnp.matmul, precision="highest", preferred_element_type=jnp.float32)
    square = jnp.square(w.astype(jnp.float32)).sum(0)
    square += 2 * scale * (dot(a.T.astype(w.dtype), w) * b).sum(0)
    square += scale**2 * (dot(dot(a.T, a), b) * b).sum(0)
    norm = jnp.sqrt(jnp.maximum(square, 1e-30)).reshape(leaves["lora_m"].shape)
    return leaves["lora_m"] / jax.lax.stop_gradient(norm)


def merge(params: Params) -> Params:
    """The adapters' products added to their kernels, in float32, and the adapters left out."""
    leaves = dict(tree.flatten(params))
    for name in [name for name in leaves if name.endswith("/lora_a")]:
        beside = name.removesuffix("lora_a")
        own = {part: leaves.pop(beside + part) for part in PARTS if beside + part in leaves}
        leaves[beside + "kernel"] = jax.vmap(_merged)(leaves[beside + "kernel"], own)
    return tree.unflatten(leaves)


def without(params: Params) -> Params:
    """The parameters without their adapters."""
    leaves = tree.flatten(params)
    return tree.unflatten({n: x for n, x in leaves.items() if n.split("/")[-1] not in PARTS})


def _merged(kernel: Array, leaves: dict[str, Array]) -> Array:
    """One layer's kernel with its adapter."""
    a, b = factors(leaves)
    rank = a.shape[-1]
    product = jnp.einsum("ir,ro->io", a.reshape(-1, rank), b.reshape(rank, -1))
    flat = kernel.astype(jnp.float32).reshape(product.shape) + leaves["lora_scale"] * product
    if "lora_m" in leaves:
        flat *= growth(kernel, leaves).reshape(1, -1)
    return flat.reshape(kernel.shape).astype(kernel.dtype)


def _principal(kernel: Array, rank: int, scale: float) -> tuple[Array, Array]:
    """(A [I, R], B [R, O]) whose product times `scale` is the kernel's [I, O] best of this rank."""
    u, s, vt = jnp.linalg.svd(kernel.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(s[:rank] / scale)
    return u[:, :rank] * root[None], root[:, None] * vt[:rank]


def _flat(name: str, kernel: Array) -> Array:
    """A kernel as [layers, I, O]."""
    inputs, _ = sides(name, kernel.shape)
    return kernel.reshape(kernel.shape[0], math.prod(inputs), -1)
