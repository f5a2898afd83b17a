"""The layers of a stack, scanned; and a stack in two, where the last layers alone are trained.

A leaf of a stack holds every layer's [layers, ...]. Split, the lower layers are leaves of their own
in LOWER, of which the step computes no gradient and keeps no optimizer state.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout
from jaxlm.core.parts import LOWER, last_stack
from jaxlm.core.tree import Params
from jaxlm.models.axes import AXES


def scan(
    stack: nn.Module, block: Any, settings: tuple[Any, ...], x: Array, shared: Any, cache: Any
) -> tuple[Array, Any]:
    """x [B, L, D] through the layers of `stack`, each a `block(*settings)`, and what they tell.

    settings: the spec first. In two scans when the parameters have LOWER: structure is the switch.
    """
    spec, apart = settings[0], stack.has_variable("params", LOWER)

    def part(name: str, first: int, end: int, x: Array, cache: Any) -> tuple[Array, Any]:
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0, 0),  # pyright: ignore[reportArgumentType]
            length=end - first,
            unroll=spec.unroll,
        )
        return blocks(*settings, name=name)(x, shared, jnp.arange(first, end), cache)

    if not apart:
        return part("blocks", 0, spec.layers, x, cache)
    below = jax.tree.leaves(stack.get_variable("params", LOWER))[0].shape[0]
    x, low = part(LOWER, 0, below, x, jax.tree.map(lambda rows: rows[:below], cache))
    x, high = part("blocks", below, spec.layers, x, jax.tree.map(lambda rows: rows[below:], cache))
    return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), low, high)


def split(params: Params, layout: Layout, count: int) -> Params:
    """`params` with all but the last `count` layers of the stack that the head reads in LOWER.

    The arrays of that stack are given up one by one, so that it is never there twice. Raises
    ConfigError when it has fewer layers.
    """
    leaves = tree.flatten(params)
    stack = last_stack(leaves)
    names = [name for name in leaves if name.startswith(stack)]
    layers = leaves[names[0]].shape[0]
    if count > layers:
        raise ConfigError(
            "trainable", f"last_layers: {count} of a model of {layers}; use {layers} or less"
        )
    below = layers - count
    if not below:
        return params
    shardings = tree.flatten(layout.shardings(params, AXES))
    for name in names:
        leaf = leaves[name]
        cut = jax.jit(lambda x: (x[:below], x[below:]), out_shardings=(shardings[name],) * 2)
        leaves[name.replace("/blocks/", f"/{LOWER}/", 1)], leaves[name] = cut(leaf)
        _give_up(leaf)
    return tree.unflatten(leaves)


def joined(params: Params, layout: Layout) -> Params:
    """The inverse of `split`; what is not split stays as it is."""
    leaves = tree.flatten(params)
    shardings = tree.flatten(layout.shardings(params, AXES))
    for name in [name for name in leaves if f"/{LOWER}/" in name]:
        low, high = leaves.pop(name), name.replace(f"/{LOWER}/", "/blocks/")
        join = jax.jit(lambda a, b: jnp.concatenate([a, b]), out_shardings=shardings[name])
        parts = low, leaves[high]
        leaves[high] = join(*parts)
        _give_up(*parts)
    return tree.unflatten(leaves)


def _give_up(*leaves: Any) -> None:
    for leaf in leaves:
        if not isinstance(leaf, Tracer):
            leaf.delete()
