"""The rows of new tokens apart from the tables that they extend, so that they alone are trained."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.core import tree
from jaxlm.core.mesh import Layout, logical_axes
from jaxlm.core.parts import NEW_ROWS
from jaxlm.core.tree import Params
from jaxlm.models.axes import AXES


def tables(params: Params) -> dict[str, int]:
    """The parameters with a row per id, embedding and head, and which axis counts the ids."""
    axes = {name: logical_axes(name, AXES) or () for name in tree.flatten(params)}
    return {name: found.index("vocab") for name, found in axes.items() if "vocab" in found}


def split(params: Params, layout: Layout, first: int, vocab: int) -> Params:
    """`params` with the rows [first, vocab) of embedding and head as NEW_ROWS [rows, D] beside.

    The tables keep theirs, which are read no more. A head's bias is not split.
    """
    leaves, made = tree.flatten(params), {}
    cuts = {
        name: partial(_cut, axis=axis, first=first, vocab=vocab)
        for name, axis in tables(params).items()
        if leaves[name].ndim == 2
    }
    for name, cut in cuts.items():
        like = {beside(name): jax.eval_shape(cut, leaves[name])}
        lies = layout.shardings(tree.unflatten(like), AXES)
        made[beside(name)] = jax.jit(cut, out_shardings=tree.flatten(lies)[beside(name)])(
            leaves[name]
        )
    return tree.unflatten(leaves | made)


def joined(params: Params, layout: Layout, vocab: int) -> Params:
    """The inverse of `split`; what is not split stays as it is."""
    leaves = tree.flatten(params)
    shardings = tree.flatten(layout.shardings(params, AXES))
    for name, axis in tables(params).items():
        if (new := leaves.pop(beside(name), None)) is not None:
            put = jax.jit(partial(_put, axis=axis, vocab=vocab), out_shardings=shardings[name])
            leaves[name] = put(leaves[name], new)
    return tree.unflatten(leaves)


def looked_up(found: Array, new: Array, index: Array, vocab: int) -> Array:
    """The rows of ids `index` [...], `found` [..., D] in the table, from `new` [rows, D] where they
    are new.
    """
    at = index - (vocab - new.shape[0])
    rows = new[jnp.clip(at, 0, new.shape[0] - 1)].astype(found.dtype)
    return jnp.where((at >= 0)[..., None], rows, found)


def scored(scores: Array, own: Array, vocab: int) -> Array:
    """Scores [..., padded V] with those of the new ids `own` [..., rows] in place."""
    first = (*[0] * (scores.ndim - 1), vocab - own.shape[-1])
    return jax.lax.dynamic_update_slice(scores, own, first)


def beside(name: str) -> str:
    """The name of the new rows of a table."""
    return f"{name.rpartition('/')[0]}/{NEW_ROWS}"


def _cut(table: Array, *, axis: int, first: int, vocab: int) -> Array:
    return jnp.moveaxis(jax.lax.slice_in_dim(table, first, vocab, axis=axis), axis, 0)


def _put(table: Array, new: Array, *, axis: int, vocab: int) -> Array:
    new, kind = jnp.moveaxis(new, 0, axis), jnp.promote_types(table.dtype, new.dtype)
    table, new = table.astype(kind), new.astype(kind)
    first = vocab - new.shape[axis]
    return jax.lax.dynamic_update_slice_in_dim(table, new, first, axis)
