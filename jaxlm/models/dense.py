"""A dense product with its low-rank adapter, and dropout."""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxlm.models import lora
from jaxlm.models.products import dense


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
    def __call__(self, x: Array, keys: Array | None = None) -> Array:
        """keys: a key per row [B] of x for the adapter's dropout; None: no noise."""
        shape = self.inputs + self.outputs
        kernel = self.param("kernel", nn.initializers.normal(self.scale), shape)
        y = self._product(x, kernel, len(self.inputs))
        if self.has_variable("params", "lora_a"):
            y = self._adapted(y, x, kernel, keys)
        if self.bias:
            y += whole(self.param("bias", nn.initializers.zeros, self.outputs), y)
        return y

    def _adapted(self, y: Array, x: Array, kernel: Array, keys: Array | None) -> Array:
        """y, the product of x and the kernel, with the adapter."""
        there = [part for part in lora.PARTS if self.has_variable("params", part)]
        leaves: dict[str, Array] = {part: self.get_variable("params", part) for part in there}
        a, b = lora.factors(leaves)
        if "lora_drop" in leaves:
            site = zlib.crc32("/".join(self.path).encode())
            x = dropout(x, leaves["lora_drop"], keys, site)
        low, scale = self._product(x, a, len(self.inputs)), leaves["lora_scale"].astype(self.dtype)
        if scale.ndim:  # of each row and slot
            each = jnp.repeat(scale, low.shape[-1] // scale.shape[-1], axis=-1)
            return y + self._product(low * each[:, None], b, 1)
        y += self._product(low, b, 1) * scale
        return y * whole(lora.growth(kernel, leaves), y) if "lora_m" in leaves else y

    def _product(self, x: Array, kernel: Array, contracted: int) -> Array:
        y = dense(x.astype(self.dtype), kernel.astype(self.dtype), contracted)
        return checkpoint_name(y, "product")


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
