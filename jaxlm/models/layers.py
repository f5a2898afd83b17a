"""The parts of a block: dense products, norms, the MLP, dropout.

Parameters are stored in their own type and cast where they are used; norms and softmax are float32.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxlm.models.products import dense
from jaxlm.models.spec import ModelSpec, Norm

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


class Dense(nn.Module):
    """x [..., *inputs] -> [..., *outputs], with a LoRA adapter when its leaves are in the dict.

    `lora_a` [*inputs, R], `lora_b` [R, *outputs] and `lora_scale` [] beside `kernel` add
    `scale * (x A) B` on the activation path (Hu et al. 2021, eq. 3): structure is the switch, so
    swapping an adapter is passing other arrays.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dtype: DTypeLike
    bias: bool = False
    scale: float = 0.02

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = self.inputs + self.outputs
        kernel = self.param("kernel", nn.initializers.normal(self.scale), shape)
        y = self._product(x, kernel, len(self.inputs))
        if self.has_variable("params", "lora_a"):
            a, b, s = (self.get_variable("params", f"lora_{k}") for k in ("a", "b", "scale"))
            y += self._product(self._product(x, a, len(self.inputs)), b, 1) * s.astype(self.dtype)
        if self.bias:
            y += whole(self.param("bias", nn.initializers.zeros, self.outputs), y)
        return y

    def _product(self, x: Array, kernel: Array, contracted: int) -> Array:
        y = dense(x.astype(self.dtype), kernel.astype(self.dtype), contracted)
        return checkpoint_name(y, "product")


class Normalize(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019, eq. 4) or LayerNorm (Ba et al. 2016, eq. 3) over D."""

    norm: Norm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1:]
        y = x.astype(jnp.float32)
        if self.norm.type == "layer":
            y -= y.mean(-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.norm.eps)
        one = nn.initializers.constant(1.0 - self.norm.shift)
        y *= whole(self.param("scale", one, width), y) + self.norm.shift
        if self.norm.type == "layer" and self.norm.bias:
            y += whole(self.param("bias", nn.initializers.zeros, width), y)
        return y.astype(x.dtype)


class Mlp(nn.Module):
    """x [B, L, D] -> [B, L, D] through F hidden units, gated (Shazeer 2020, eq. 6) or plain."""

    hidden: int
    activation: str
    gated: bool
    bias: bool
    dtype: DTypeLike
    scale: float
    out_scale: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        embed, act = x.shape[-1], ACTIVATIONS[self.activation]

        def up(name: str) -> Array:
            dense = Dense((embed,), (self.hidden,), self.dtype, self.bias, self.scale, name=name)
            return dense(x)

        hidden = act(up("gate")) * up("up") if self.gated else act(up("up"))
        down = Dense((self.hidden,), (embed,), self.dtype, self.bias, self.out_scale, name="down")
        return down(hidden)


class Kernel(nn.Module):
    """A declared parameter that another function uses."""

    shape: tuple[int, ...]
    initializer: Callable[..., Array]

    @nn.compact
    def __call__(self) -> Array:
        return self.param("kernel", self.initializer, self.shape)


def residual_scale(spec: ModelSpec) -> float:
    """Of a residual's output: its variance does not grow with depth (Radford et al. 2019, 2.3)."""
    return spec.init_scale / math.sqrt(2 * spec.layers)


def whole(leaf: Array, like: Array) -> Array:
    """A scale or bias [*S] as [1, ..., *S], of the rank and type of `like` [..., *S]."""
    return leaf.reshape((1,) * (like.ndim - leaf.ndim) + leaf.shape).astype(like.dtype)


def dropout(x: Array, rate: float, keys: Array | None, site: Array | int) -> Array:
    """Drop a share `rate` of x [B, ...] and rescale; `keys` [B], one per row, None drops nothing.

    A row's noise depends on its own key and the site alone, so it does not change with the
    number of microbatches or devices.
    """
    if keys is None or rate == 0.0:
        return x

    def row(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, site), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(row)(keys), x / (1 - rate), jnp.zeros((), x.dtype))
