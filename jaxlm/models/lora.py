"""Low-rank adapters as leaves beside the kernels (Hu et al. 2021); `Dense` finds them there."""

import math
import re
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout
from jaxlm.core.parts import found
from jaxlm.core.tree import Params
from jaxlm.models.axes import AXES
from jaxlm.models.quantize import SCALE, Kernel, dequantize, gathered, quantize, shape, slices

PARTS = ("lora_a", "lora_b", "lora_a0", "lora_b0", "lora_m", "lora_scale", "lora_drop")
"""Leaves of an adapter: A [*in, R] and B [R, *out]; the product that they began as, which is
subtracted, if it was not 0, but beside a quantized kernel; each output's magnitude [*out] (DoRA);
what the product is multiplied by, [], or where the ranks are those of n slots, by each row [B, n];
the share of the input that is dropped, []."""
TRAINED = r"/lora_[abm]$"
"""Those that train."""
NAMED = {
    "attention": r"blocks/(attn|cross)/[qkvo]/kernel$",
    "mlp": r"blocks/(mlp|experts)/(gate|up|down)/kernel$",
    "all-linear": r"blocks/((attn|cross)/[qkvo]|(mlp|experts)/(gate|up|down))/kernel$",
}
"""Names of targets, of every stack of the model; an expert's kernel has an adapter of its own."""


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
    et al. 2024, eq. 2 and 3), and what they begin as is subtracted; loftq: they are there, as
    `compensated` made them. rslora: the scale is alpha / sqrt(rank) (Kalajdzievski 2023, eq. 7).
    Raises ConfigError for a target that matches no kernel of a block, for a rank that is larger
    than one, and for DoRA or dropout beside experts.
    """
    kernels, scale = select(params, targets), scaling(rank, alpha, rslora)
    check_experts(kernels, {"lora.dora": dora, "lora.dropout": bool(dropout)})
    check_init(kernels, rank, init, quantized=any(isinstance(k, dict) for k in kernels.values()))
    leaves = tree.flatten(params)
    begun = {n: x for n, x in leaves.items() if re.search(r"/lora_[ab]0?$", n)}

    def made(key: Array, kernels: dict[str, Kernel], begun: dict[str, Array]) -> Params:
        added = dict(begun)
        for index, (name, kernel) in enumerate(kernels.items()):
            beside, first = name.removesuffix("kernel"), numbered(name, shape(kernel))
            inputs, outputs = sides(name, shape(kernel))
            if beside + "lora_a" in begun:
                a, b = begun[beside + "lora_a"], begun[beside + "lora_b"]
            elif init == "pissa":
                a, b = jax.lax.map(partial(_principal, rank=rank, scale=scale), _flat(name, kernel))
                a, b = a.reshape(*first, *inputs, rank), b.reshape(*first, rank, *outputs)
                added |= {beside + "lora_a0": a, beside + "lora_b0": b}
            else:
                bound, noise = 1 / math.sqrt(math.prod(inputs)), jax.random.fold_in(key, index)
                size = (*first, *inputs, rank)
                a = jax.random.uniform(noise, size, minval=-bound, maxval=bound)
                b = jnp.zeros((*first, rank, *outputs))
            added |= {beside + "lora_a": a, beside + "lora_b": b}
            added[beside + "lora_scale"] = jnp.full(first, scale)
            if dropout:
                added[beside + "lora_drop"] = jnp.full(first, dropout)
            if dora:
                parts = counting(quantized=isinstance(kernel, dict))
                own = {part: added[beside + part] for part in parts if beside + part in added}
                added[beside + "lora_m"] = jax.lax.map(lambda pair: norms(*pair), (kernel, own))
        return tree.unflatten(added)

    shardings = layout.shardings(jax.eval_shape(made, key, kernels, begun), AXES)
    added = jax.jit(made, out_shardings=shardings)(key, kernels, begun)
    return tree.combine(tree.partition(params, frozenset(begun))[1], added)


def check_experts(kernels: Iterable[str], asked: Mapping[str, bool]) -> None:
    """Raise ConfigError where experts are to have what adapters of theirs cannot."""
    experts = [name for name in kernels if "/experts/" in name]
    for key in (key for key, wanted in asked.items() if wanted and experts):
        raise ConfigError(key, f"{experts[0]} cannot have it; leave it out, or target attention")


def scaling(rank: int, alpha: float, rslora: bool) -> float:
    """What an adapter's product is multiplied by."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def check_init(kernels: Mapping[str, Kernel], rank: int, init: str, *, quantized: bool) -> None:
    """Raise ConfigError for an init of other kernels, or a rank that is more than one has."""
    if init == "pissa" and quantized:
        raise ConfigError(
            "lora.init", "pissa is of whole kernels, and these are quantized; use loftq"
        )
    if init == "loftq" and not quantized:
        raise ConfigError("lora.init", "loftq is of quantized kernels; set frozen_dtype=nf4 too")
    for name, kernel in kernels.items():
        most = min(map(math.prod, sides(name, shape(kernel))))
        if rank > most:
            raise ConfigError("lora.rank", f"{rank} is more than {name} has; use {most} or less")


def compensated(kernel: Array, kind: str, inputs: int, rank: int, scale: float) -> dict[str, Array]:
    """The leaves of one layer's kernel [*in, *out], quantized, and of an adapter that begins as the
    best of its rank of what that lost (LoftQ, Li et al. 2023, algorithm 1, with T = 1).

    More rounds would quantize a kernel without the adapter's product: another base.
    """
    made = quantize(kernel, kind, inputs)
    size_in, size_out = kernel.shape[:inputs], kernel.shape[inputs:]
    lost = kernel.astype(jnp.float32) - dequantize(made, jnp.float32)
    a, b = _principal(lost.reshape(math.prod(size_in), -1), rank, scale)
    a, b = a.reshape(*size_in, rank), b.reshape(rank, *size_out)
    return made | {"lora_a": a, "lora_b": b, "lora_a0": a, "lora_b0": b}


def select(
    params: Params, targets: Iterable[str], where: str = "lora.targets"
) -> dict[str, Kernel]:
    """The kernels that get an adapter. Raises ConfigError for a target that matches none."""
    targets, leaves = list(targets), gathered(params)
    for target in targets:
        if target in NAMED or any(re.search(target, name) for name in leaves):
            continue
        known = ", ".join(NAMED)
        raise ConfigError(
            where, f"{target!r} matches no parameter; use {known}, or attn/(q|v)/kernel"
        )
    patterns = [NAMED.get(target, target) for target in targets]
    names = sorted({n for pattern in patterns for n in found(leaves, pattern, where)})
    kernels = [name for name in names if "blocks/" in name and name.endswith("/kernel")]
    if not kernels:
        raise ConfigError(where, "no kernel of a block matches; write attn/(q|v)/kernel")
    if routers := [name for name in kernels if name.endswith("/router/kernel")]:
        advice = "write experts/(gate|up|down)/kernel"
        raise ConfigError(where, f"{routers[0]} takes no adapter; {advice}")
    return {name: leaves[name] for name in kernels}


@cache
def numbered(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What the adapters of the kernel `name`, of `shape`, are numbered by: (layers,), or of experts
    (layers, experts).
    """
    return shape[: slices(name)[0]]


@cache
def sides(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the inputs, the outputs) of what an adapter is beside, of the kernel `name` of `shape`."""
    first, inputs = slices(name)
    return shape[first : first + inputs], shape[first + inputs :]


def counting(*, quantized: bool) -> tuple[str, ...]:
    """The parts that count beside a kernel: what an adapter of a quantized one began as makes up
    for what that lost, and is subtracted where it leaves for the whole one.
    """
    return tuple(part for part in PARTS if not (quantized and part.endswith("0")))


def factors(leaves: Mapping[str, Array]) -> tuple[Array, Array]:
    """(A [*in, R], B [R, *out]) of one layer of an adapter; with a product to subtract, 2 R."""
    a, b = leaves["lora_a"], leaves["lora_b"]
    if "lora_a0" not in leaves:
        return a, b
    a0, b0 = leaves["lora_a0"], leaves["lora_b0"]
    return jnp.concatenate([a, a0], -1), jnp.concatenate([b, -b0], 0)


def growth(kernel: Kernel, leaves: Mapping[str, Array]) -> Array:
    """What each output [*out] is multiplied by: its magnitude over the norm of its column of kernel
    + scale A B, which is a constant to the gradient (Liu et al. 2024, section 4.3). float32.
    """
    return leaves["lora_m"] / norms(*jax.lax.stop_gradient((kernel, dict(leaves))))


def norms(kernel: Kernel, leaves: Mapping[str, Array]) -> Array:
    """The norm of each output's column [*out] of one layer's kernel + scale A B, float32."""
    a, b = factors(leaves)
    rank, scale, outputs = a.shape[-1], leaves["lora_scale"], b.shape[1:]
    a, b = a.reshape(-1, rank), b.reshape(rank, -1)
    w = dequantize(kernel, a.dtype if isinstance(kernel, dict) else kernel.dtype)
    w = w.reshape(a.shape[0], -1)
    dot = partial(jnp.matmul, precision="highest", preferred_element_type=jnp.float32)
    square = jnp.square(w.astype(jnp.float32)).sum(0)
    square += 2 * scale * (dot(a.T.astype(w.dtype), w) * b).sum(0)
    square += scale**2 * (dot(dot(a.T, a), b) * b).sum(0)
    return jnp.sqrt(jnp.maximum(square, 1e-30)).reshape(outputs)


def merge(params: Params) -> Params:
    """The adapters' products added to their kernels, in float32, and the adapters left out.

    What was quantized is bfloat16 then.
    """
    leaves = gathered(params)
    for name in [name for name in leaves if name.endswith("/kernel")]:
        beside, kernel = name.removesuffix("kernel"), leaves[name]
        own = {part: leaves.pop(beside + part) for part in PARTS if beside + part in leaves}
        if own:
            parts = own.keys() & counting(quantized=isinstance(kernel, dict))
            merged = _merged
            for _ in numbered(name, shape(kernel)):
                merged = jax.vmap(merged)
            leaves[name] = merged(kernel, {part: own[part] for part in parts})
        elif isinstance(kernel, dict):
            leaves[name] = dequantize(kernel, jnp.bfloat16)
    return tree.unflatten(leaves)


def without(params: Params) -> Params:
    """The parameters without their adapters."""
    leaves = tree.flatten(params)
    return tree.unflatten({n: x for n, x in leaves.items() if n.split("/")[-1] not in PARTS})


def begun(params: Params) -> Params:
    """The parameters without their adapters, but for what these began as beside a quantized kernel,
    which makes up for what that lost.
    """
    leaves, made = tree.flatten(params), tree.flatten(without(params))
    for beside in {n.removesuffix(SCALE) for n in leaves if n.endswith(SCALE)}:
        if beside + "lora_a0" in leaves:
            first = {"lora_a": "lora_a0", "lora_b": "lora_b0", "lora_scale": "lora_scale"}
            made |= {beside + part: leaves[beside + its] for part, its in first.items()}
    return tree.unflatten(made)


def _merged(kernel: Kernel, leaves: dict[str, Array]) -> Array:
    """One layer's kernel with its adapter."""
    a, b = factors(leaves)
    rank = a.shape[-1]
    product = jnp.einsum("ir,ro->io", a.reshape(-1, rank), b.reshape(rank, -1))
    flat = dequantize(kernel, jnp.float32).reshape(product.shape) + leaves["lora_scale"] * product
    if "lora_m" in leaves:
        flat *= growth(kernel, leaves).reshape(1, -1)
    return flat.reshape(shape(kernel)).astype(
        jnp.bfloat16 if isinstance(kernel, dict) else kernel.dtype
    )


def _principal(kernel: Array, rank: int, scale: float) -> tuple[Array, Array]:
    """(A [I, R], B [R, O]) whose product times `scale` is the kernel's [I, O] best of this rank."""
    u, s, vt = jnp.linalg.svd(kernel.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(s[:rank] / scale)
    return u[:, :rank] * root[None], root[:, None] * vt[:rank]


def _flat(name: str, kernel: Any) -> Array:
    """A kernel as [layers, or layers x experts, I, O]."""
    inputs, outputs = sides(name, kernel.shape)
    return kernel.reshape(-1, math.prod(inputs), math.prod(outputs))
