"""Frozen kernels in 8 or 4 bits: leaves beside each other, which `Dense` and `Experts` find.

A kernel [*in, *out] is multiplied as what its leaves stand for, made anew wherever it is used: a
backward pass keeps none of it.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout, logical_axes
from jaxlm.core.parts import whole
from jaxlm.models import products
from jaxlm.models.axes import AXES, INPUTS

KINDS = ("int8", "nf4")
SCALE = "kernel_scale"
PARTS = ("kernel_int8", "kernel_nf4", "kernel_block", SCALE)
"""Leaves of a quantized kernel, all of its rank: int8 [*in, *out], or nf4 with two of the last
input axis in a byte, uint8, and the largest of each block of it over the scale, uint8; the scale
of each output, float32, 1 along the inputs."""
KERNELS = r"blocks/((attn|cross)/[qkvo]|(mlp|experts)/(gate|up|down))/kernel$"
"""What is quantized. A router is small, and decides much."""
BLOCK = 64
"""Most numbers along the last input axis that share a scale of nf4."""
LEAST = 4
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The quantiles of a normal distribution, scaled to [-1, 1] (Dettmers et al. 2023, appendix E)."""

Kernel = Array | dict[str, Array]
"""A kernel, or the leaves that stand for it."""


def quantize(kernel: Array, kind: str, inputs: int) -> dict[str, Array]:
    """The leaves of a kernel [*in, *out] with so many input axes; kind: int8 or nf4.

    int8: the largest of each output is 127. nf4 (Dettmers et al. 2023, sections 2 and 3): numbers
    are the nearest of 16 quantiles, times the largest of their block; these are in turn 8 bits of
    the largest of their output, so that scales lie as the kernel does on every mesh.
    """
    kernel, over = kernel.astype(jnp.float32), tuple(range(inputs))
    most = jnp.abs(kernel).max(over, keepdims=True)
    if kind == "int8":
        scale = most * jnp.float32(1 / 127)
        codes = jnp.round(kernel / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
        return {"kernel_int8": codes, "kernel_scale": scale}
    axis = inputs - 1
    head, size, tail = kernel.shape[:axis], kernel.shape[axis], kernel.shape[inputs:]
    rows = kernel.reshape(*head, -1, math.gcd(BLOCK, size), *tail)
    largest, scale = jnp.abs(rows).max(inputs), most * jnp.float32(1 / 255)
    blocks = jnp.round(largest / jnp.where(scale > 0, scale, 1)).astype(jnp.uint8)
    unit = jnp.expand_dims(blocks.astype(jnp.float32) * scale, inputs)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(NF4)]
    codes = sum((rows > middle * unit).astype(jnp.uint8) for middle in middles)
    low, high = jnp.split(jnp.asarray(codes), 2, inputs)
    packed = (low | high << 4).reshape(*head, size // 2, *tail)
    return {"kernel_nf4": packed, "kernel_block": blocks, "kernel_scale": scale}


def dequantize(kernel: Kernel, dtype: DTypeLike) -> Array:
    """The kernel that leaves stand for, of one layer or of all, in `dtype`."""
    if not isinstance(kernel, dict):
        return kernel.astype(dtype)
    scale = kernel["kernel_scale"]
    if "kernel_int8" in kernel:
        return (kernel["kernel_int8"].astype(jnp.float32) * scale).astype(dtype)
    codes, blocks = kernel["kernel_nf4"], kernel["kernel_block"]
    axis = _packed(kernel)
    head, count, tail = codes.shape[:axis], blocks.shape[axis], codes.shape[axis + 1 :]
    pairs = codes.reshape(*head, count, -1, *tail)
    each = jnp.concatenate([pairs & 15, pairs >> 4], axis + 1)
    unit = jnp.expand_dims(blocks.astype(jnp.float32) * scale, axis + 1)
    return (jnp.asarray(NF4)[each] * unit).astype(dtype).reshape(shape(kernel))


def shape(kernel: Any) -> tuple[int, ...]:
    """Of the kernel that leaves (or ShapeDtypeStructs of them) stand for."""
    if not isinstance(kernel, dict):
        return tuple(kernel.shape)
    if "kernel_int8" in kernel:
        return tuple(kernel["kernel_int8"].shape)
    axis, codes = _packed(kernel), kernel["kernel_nf4"].shape
    return *codes[:axis], 2 * codes[axis], *codes[axis + 1 :]


def _packed(kernel: Mapping[str, Any]) -> int:
    """The axis along which nf4 lies two in a byte, and more in a block."""
    sizes = zip(kernel["kernel_nf4"].shape, kernel["kernel_block"].shape, strict=True)
    return next(axis for axis, (codes, blocks) in enumerate(sizes) if codes != blocks)


def declared(module: nn.Module, make: Callable[..., Array], shape: tuple[int, ...]) -> Kernel:
    """The kernel of a module, as it is stored."""
    there = [part for part in PARTS if module.has_variable("params", part)]
    if not there:
        return module.param("kernel", make, shape)
    return {part: module.get_variable("params", part) for part in there}


def dense(x: Array, kernel: Kernel, contracted: int) -> Array:
    """As `products.dense`, in the type of x, with a kernel that may be quantized."""
    if isinstance(kernel, dict):
        return _dense(x, kernel, contracted)
    return products.dense(x, kernel.astype(x.dtype), contracted)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: Array, kernel: dict[str, Array], contracted: int) -> Array:
    return products.dense(x, dequantize(kernel, x.dtype), contracted)


def _dense_forward(x: Array, kernel: dict[str, Array], contracted: int) -> tuple[Array, Any]:
    return _dense(x, kernel, contracted), kernel


def _dense_backward(contracted: int, saved: dict[str, Array], grad: Array) -> tuple[Array, None]:
    saved, grad = jax.lax.optimization_barrier((saved, grad))  # else the forward's kernel is kept
    kernel = dequantize(saved, grad.dtype)
    first = grad.ndim - (kernel.ndim - contracted)
    over = (range(first, grad.ndim), range(contracted, kernel.ndim))
    return jax.lax.dot_general(grad, kernel, (over, ((), ()))), None


_dense.defvjp(_dense_forward, _dense_backward)


def grouped(rows: Array, kernel: Kernel, sizes: Array) -> Array:
    """rows [T, I], sorted by group, each with its group's kernel [E, I, O] -> [T, O].

    sizes [E] int32: rows of each group.
    """
    if isinstance(kernel, dict):
        return _grouped(rows, kernel, sizes)
    return jax.lax.ragged_dot(rows, kernel.astype(rows.dtype), sizes)


@jax.custom_vjp
def _grouped(rows: Array, kernel: dict[str, Array], sizes: Array) -> Array:
    return jax.lax.ragged_dot(rows, dequantize(kernel, rows.dtype), sizes)


def _grouped_forward(rows: Array, kernel: dict[str, Array], sizes: Array) -> tuple[Array, Any]:
    return _grouped(rows, kernel, sizes), (kernel, sizes)


def _grouped_backward(saved: Any, grad: Array) -> tuple[Array, None, None]:
    (kernel, sizes), grad = jax.lax.optimization_barrier((saved, grad))
    turned = dequantize(kernel, grad.dtype).swapaxes(1, 2)
    return jax.lax.ragged_dot(grad, turned, sizes), None, None


_grouped.defvjp(_grouped_forward, _grouped_backward)


def gathered(params: Any) -> dict[str, Any]:
    """Leaves by name, those of a quantized kernel together under the kernel's."""
    found: dict[str, Any] = {}
    for name, leaf in tree.flatten(params).items():
        beside, _, part = name.rpartition("/")
        if part in PARTS:
            found.setdefault(f"{beside}/kernel", {})[part] = leaf
        else:
            found[name] = leaf
    return found


def numbers(name: str, leaf: Any) -> int:
    """How many parameters a leaf holds: two in a byte of nf4, and a scale is none."""
    part = name.rpartition("/")[2]
    return leaf.size * {"kernel_nf4": 2, "kernel_block": 0, "kernel_scale": 0}.get(part, 1)


def total(params: Any) -> int:
    """How many parameters a tree holds."""
    return sum(numbers(name, leaf) for name, leaf in tree.flatten(params).items())


def slices(name: str) -> tuple[int, int]:
    """(leading axes that number the slices of a kernel, the input axes of a slice)."""
    axes = (logical_axes(whole(name), AXES) or ())[1:]
    experts = axes[:1] == ("experts",)
    return 1 + experts, INPUTS[axes[experts:]]


def over_slices(name: str, one: Callable[..., Any], kernel: Array) -> Any:
    """`one`(slice, inputs=its input axes) of every slice of a kernel, one after the other."""
    first, inputs = slices(name)
    made = partial(one, inputs=inputs)
    for _ in range(first):
        made = partial(jax.lax.map, made)
    return made(kernel)


def check(name: str, kernel: Any, kind: str, layout: Layout) -> None:
    """Raise ConfigError for a kernel that cannot be stored so, or not split as it is.

    kernel: its ShapeDtypeStruct with all layers.
    """
    first, inputs = slices(name)
    axis = first + inputs - 1
    size = kernel.shape[axis]
    if kind != "nf4":
        return
    block = math.gcd(BLOCK, size)
    if block < LEAST:
        what = f"nf4 needs inputs of a multiple of {LEAST}, and {name} has {size}; use int8"
        raise ConfigError("frozen_dtype", what)
    split = layout.split(logical_axes(name, AXES) or (), kernel.shape)[axis]
    shards = math.prod(layout.mesh.shape[mesh_axis] for mesh_axis in split)
    if size // block % shards:
        what = f"the blocks of {block} of {name}'s {size} inputs do not split over {shards} devices"
        raise ConfigError("frozen_dtype", f"{what}; use int8, or fewer and mesh.data")
