"""A digest of an array's values that does not depend on how it is sharded.

Each element's bits are mixed with its place in the whole array and the results are summed modulo
2^32, in two lanes: exact integer arithmetic, whose sum is the same in any order and on any mesh. It
finds damage, swapped rows and steps that differ; it is no protection against an adversary.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.checkpoint.manifest import Tensor

_BLOCK = 1 << 20  # elements the host digests at a time
_WORD = 2**32


def digests(leaves: Mapping[str, jax.Array]) -> tuple[dict[str, Tensor], list[str]]:
    """(the digest of each array, the names of those with a NaN or an infinity), on the devices.

    leaves: arrays by name, of any sharding; on several processes, the same global arrays on each,
    in the same order. One compiled call and one transfer of 12 bytes per array.
    """
    if not leaves:
        return {}, []
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array):
            raise TypeError(f"{name}: a {type(leaf).__name__} where a jax.Array is meant")
    meshes = [x.sharding.mesh for x in leaves.values() if isinstance(x.sharding, NamedSharding)]
    everywhere = NamedSharding(meshes[0], P()) if meshes else None
    rows = np.asarray(_compiled(everywhere)(tuple(leaves.values())))
    tensors = {
        name: Tensor(tuple(leaf.shape), leaf.dtype.name, _hex(row))
        for (name, leaf), row in zip(leaves.items(), rows, strict=True)
    }
    return tensors, [name for name, row in zip(leaves, rows, strict=True) if row[2]]


class Slices:
    """Digests of arrays that come one slice after the other, equal to those of `digests`."""

    def __init__(self, shapes: Mapping[str, Any]):
        """shapes: arrays or ShapeDtypeStructs by name; a slice is digested in their type."""
        self._shapes = shapes
        self._rows = {name: np.zeros(2, np.uint32) for name in shapes}

    def add(self, name: str, at: Sequence[int], x: Any) -> None:
        """Count `array[at]`, which is x, of one axis at least."""
        whole = self._shapes[name]
        step = max(1, _BLOCK // max(1, math.prod(x.shape[1:])))
        for start in range(0, x.shape[0], step):  # a device copies what it is given
            part, first = x[start : start + step], np.array([*at, start], np.uint32)
            row = _slice_row(part, first, tuple(whole.shape), whole.dtype.name)
            self._rows[name] += np.asarray(row)[:2]

    def tensors(self) -> dict[str, Tensor]:
        """The digest of each array, all of whose slices were added."""
        return {
            name: Tensor(tuple(whole.shape), whole.dtype.name, _hex(self._rows[name]))
            for name, whole in self._shapes.items()
        }


def host_digest(array: np.ndarray) -> Tensor:
    """The digest of an array in host memory, equal to that of `digests`; no device is touched."""
    words = _host_words(array)
    inner, lanes = _inner(words.shape), np.zeros(2, np.uint32)
    flat = words.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK].astype(np.uint32)
        place = np.arange(start, start + block.size, dtype=np.uint64)
        low, high = (place % inner).astype(np.uint32), (place // inner).astype(np.uint32)
        lanes += np.array([lane.sum(dtype=np.uint32) for lane in _lanes(block, low, high)])
    return Tensor(tuple(array.shape), array.dtype.name, _hex(lanes))


@functools.cache
def _compiled(everywhere: NamedSharding | None) -> Any:
    return jax.jit(
        lambda leaves: jnp.stack([_device_row(leaf) for leaf in leaves]), out_shardings=everywhere
    )


@partial(jax.jit, static_argnums=(2, 3))
def _slice_row(x: jax.Array, at: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """The row of x as `array[at]` of one of this shape and type."""
    lead = (1,) * (len(shape) - x.ndim)
    return _device_row(x.astype(dtype).reshape(*lead, *x.shape), shape, tuple(at))


def _device_row(
    x: jax.Array, shape: tuple[int, ...] | None = None, at: tuple[jax.Array, ...] = ()
) -> jax.Array:
    """uint32 [3]: two lanes, and 1 where a value is not finite.

    x: an array, or the part of one of the given shape that begins at `at` along its first axes.

    One reduction of three operands, because XLA's CPU compiler would write the terms of three
    separate ones to memory: a tenth of the time and no temporaries.
    """
    words = _device_words(x)
    shape = shape or words.shape
    inner = _inner(shape)
    places = [jnp.zeros(words.shape, jnp.uint32), jnp.zeros(words.shape, jnp.uint32)]
    for axis in range(words.ndim):
        stride = math.prod(shape[axis + 1 :])
        high, stride = (0, stride) if stride < inner else (1, stride // inner)
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        iota = iota + at[axis] if axis < len(at) else iota
        places[high] += iota * jnp.uint32(stride)
    bad = jnp.zeros(words.shape, jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.floating):
        bad = bad + jnp.reshape(~jnp.isfinite(x), (*x.shape, *[1] * (words.ndim - x.ndim)))
    sums = jax.lax.reduce(
        (*_lanes(words, *places), bad),
        (jnp.uint32(0),) * 3,
        lambda a, b: (a[0] + b[0], a[1] + b[1], a[2] | b[2]),
        tuple(range(words.ndim)),
    )
    return jnp.stack(sums)


def _lanes(words: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """The two terms of each element, uint32 like the arguments; numpy and jax alike.

    A change of one element always changes the first lane, because each step is a bijection.
    """
    mixed = words ^ (_mix(low) + _mix(high + np.uint32(0x9E3779B9)))
    return _mix(mixed + np.uint32(0x7F4A7C15)), _mix(mixed * np.uint32(0x2545F491))


def _mix(x: Any) -> Any:
    """The finalizer of MurmurHash3: a bijection of uint32 in which every bit moves every other."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _inner(shape: tuple[int, ...]) -> int:
    """Elements in the largest run of trailing axes that 32 bits can number."""
    inner = 1
    for length in reversed(shape):
        if inner * length >= _WORD:
            break
        inner *= max(length, 1)
    return inner


def _device_words(x: jax.Array) -> jax.Array:
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(_width(x.dtype), jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _host_words(array: np.ndarray) -> np.ndarray:
    """The same words as on the device: 8-byte elements are two, along a new last axis."""
    if array.dtype == bool:
        return array
    width = _width(array.dtype)
    words = np.ascontiguousarray(array).view({1: np.uint8, 2: np.uint16}.get(width, np.uint32))
    return words.reshape(*array.shape, 2) if width == 8 else words.reshape(array.shape)


def _width(dtype: Any) -> int:
    """Bytes of an element; TypeError for keys, complex numbers and packed 4-bit types."""
    if dtype.name.startswith(("key", "complex", "int4", "uint4", "int2", "uint2", "float4")):
        raise TypeError(f"arrays of {dtype.name} have no digest")
    return dtype.itemsize


def _hex(lanes: Any) -> str:
    return f"{int(lanes[0]):08x}{int(lanes[1]):08x}"
