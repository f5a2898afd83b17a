"""Parameters as a plain nested dict with names, and the policies that are masks over them.

A name is the path of a leaf: `decoder/blocks/attn/q/kernel`. A mask is the set of the names that
are in. `partition` returns two smaller dicts without the absent branches; `combine` merges them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.parts import found

Params = dict[str, Any]
Mask = frozenset[str]


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a jax key path, of dicts, tuples and named tuples alike."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by name, in the tree's order. Works for optimizer states too."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: dict[str, Any]) -> Params:
    """The nested dict of leaves by name."""
    tree: Params = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = leaf
    return tree


def map_named(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function is given the name of the leaf first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: fn(path_name(path), *leaves), tree, *rest
    )


def select(params: Params, patterns: Iterable[str], where: str = "trainable") -> Mask:
    """The names in which one of the regular expressions is found.

    Raises ConfigError, under the key `where`, for a pattern that matches nothing or is not one.
    """
    names = list(flatten(params))
    return frozenset(name for each in patterns for name in found(names, each, where))


def partition(params: Params, mask: Mask) -> tuple[Params, Params]:
    """(what the mask holds, the rest), each without the other's branches."""
    leaves = flatten(params)
    inside = {name: leaf for name, leaf in leaves.items() if name in mask}
    outside = {name: leaf for name, leaf in leaves.items() if name not in mask}
    return unflatten(inside), unflatten(outside)


def combine(first: Params, second: Params) -> Params:
    """The inverse of `partition`: the union of two dicts that share no leaf."""
    merged = dict(first)
    for key, value in second.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(value, dict) and isinstance(merged[key], dict):
            merged[key] = combine(merged[key], value)
        else:
            raise ValueError(f"both trees hold {key!r}")
    return merged


def widened(params: Any) -> Any:
    """Every floating leaf in float32: arrays, or ShapeDtypeStructs with their shardings."""

    def wide(leaf: Any) -> Any:
        if leaf.dtype == jnp.float32 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)
        return leaf.astype(jnp.float32)

    return jax.tree.map(wide, params)


def nbytes(tree: Any) -> int:
    """Bytes of all leaves (arrays or ShapeDtypeStructs), unsharded."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
