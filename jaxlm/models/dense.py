"""A dense product with its low-rank adapter, and dropout."""

import zlib
from collections.abc import Sequence
from itertools import accumulate

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxlm.models import lora
from jaxlm.models.quantize import SCALE, Kernel, declared, dense


class Dense(nn.Module):
    """x [..., *inputs] -> [..., *outputs], with a LoRA adapter when its leaves are in the dict.

    Leaves beside `kernel` (see `lora.PARTS`) add `scale * (x A) B` on the activation path (Hu et
    al. 2021, eq. 3), from an x of which a share is dropped, and scale each output (Liu et al. 2024,
    eq. 5): structure is the switch, so swapping an adapter is passing other arrays.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dtype: DTypeLike
    bias: bool = False
    scale: float = 0.02

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None, low: Array | None = None) -> Array:
        """keys: a key per row [B] of x for the adapter's dropout; None: no noise. low: x A [..., R]
        where it is known already.
        """
        shape = self.inputs + self.outputs
        kernel = declared(self, nn.initializers.normal(self.scale), shape)
        y, leaves = self._product(x, kernel, len(self.inputs)), beside(self)
        if leaves:
            low = self._low(x, keys, leaves) if low is None else low
            y += self._product(*_scaled(low, leaves), 1)
        y = checkpoint_name(y, "product")
        if "lora_m" in leaves:
            y *= whole(lora.growth(kernel, leaves), y)
        if self.bias:
            y += whole(self.param("bias", nn.initializers.zeros, self.outputs), y)
        return y

    def _low(self, x: Array, keys: Array | None, leaves: dict[str, Array]) -> Array:
        """x A [..., R], of an x of which a share is dropped."""
        if "lora_drop" in leaves:
            site = zlib.crc32("/".join(self.path).encode())
            x = dropout(x, leaves["lora_drop"], keys, site)
        low = self._product(x, lora.factors(leaves)[0], len(self.inputs))
        return checkpoint_name(low, "product")

    def _product(self, x: Array, kernel: Kernel, contracted: int) -> Array:
        return dense(x.astype(self.dtype), kernel, contracted)


def beside(module: nn.Module) -> dict[str, Array]:
    """The leaves of the adapter beside a module's kernel, by part; empty without one."""
    counting = lora.counting(quantized=module.has_variable("params", SCALE))
    there = [part for part in counting if module.has_variable("params", part)]
    return {part: module.get_variable("params", part) for part in there}


def _scaled(low: Array, leaves: dict[str, Array]) -> tuple[Array, Array]:
    """x A [B, ..., R] and B [R, *out], one of them with the scale of the product."""
    b, scale = lora.factors(leaves)[1], leaves["lora_scale"]
    if not scale.ndim:
        return low, b * scale
    each = jnp.repeat(scale, low.shape[-1] // scale.shape[-1], axis=-1)  # of each row and slot
    return low * each[:, None].astype(low.dtype), b


def together(each: Sequence[Dense], x: Array, keys: Array | None) -> list[Array]:
    """What each Dense gives for one x [..., I]; with the A of all that drop nothing x is multiplied
    once, side by side.
    """
    adapters = {one.name: leaves for one in each if (leaves := beside(one))}
    if keys is not None:
        adapters = {name: own for name, own in adapters.items() if "lora_drop" not in own}
    lows: dict[str | None, Array] = {}
    if adapters:
        many = [lora.factors(leaves)[0] for leaves in adapters.values()]
        a = jnp.concatenate(many, -1).astype(each[0].dtype)
        low = checkpoint_name(dense(x.astype(a.dtype), a, 1), "product")
        ends = list(accumulate(part.shape[-1] for part in many))
        lows = dict(zip(adapters, jnp.split(low, ends[:-1], -1), strict=True))
    return [one(x, keys, lows.get(one.name)) for one in each]


def whole(leaf: Array, like: Array) -> Array:
    """A scale or bias [*S] as [1, ..., *S], of the rank and type of `like` [..., *S]."""
    return leaf.reshape((1,) * (like.ndim - leaf.ndim) + leaf.shape).astype(like.dtype)


def dropout(x: Array, rate: float | Array, keys: Array | None, site: Array | int) -> Array:
    """Drop a share `rate` of x [B, ...] and rescale; `keys` [B], one per row, None drops nothing.

    A row's noise depends on its own key and the site alone, so it does not change with the
    number of microbatches or devices.
    """
    if keys is None or (isinstance(rate, float) and rate == 0.0):
        return x

    def row(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, site), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(row)(keys), (x / (1 - rate)).astype(x.dtype), jnp.zeros((), x.dtype))


def layer_keys(keys: Array | None, layer: Array) -> Array | None:
    """The keys [B] of a layer's adapters: no other noise has them, nor another layer."""
    if keys is None:
        return None
    return jax.vmap(lambda key: jax.random.fold_in(key, 2**20 + layer))(keys)
