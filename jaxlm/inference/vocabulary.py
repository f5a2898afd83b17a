"""A model with another tokenizer than it came with: larger tables, and ids that must not move."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.core.tree import Params
from jaxlm.models.rows import tables
from jaxlm.text.tokenizer import Tokenizer


def grown(params: Params, want: Params, old: int, new: int) -> Params:
    """`params` with rows for the ids from `old` to `new`, each the mean of the rows before.

    The mean keeps a new token about as likely as any (Hewitt 2021, "Initializing New Word
    Embeddings for Pretrained Language Models"). want: shapes and shardings of the larger model,
    padding included, which stays zero and enters no mean.
    """
    axes, leaves, wanted = tables(params), tree.flatten(params), tree.flatten(want)
    for name, axis in axes.items():
        size = wanted[name].shape[axis]
        fill = jax.jit(
            partial(_filled, axis=axis, old=old, new=new, size=size),
            out_shardings=wanted[name].sharding,
        )
        leaves[name] = fill(leaves[name])
    return tree.unflatten(leaves)


def _filled(leaf: jax.Array, *, axis: int, old: int, new: int, size: int) -> jax.Array:
    rows = jax.lax.slice_in_dim(leaf, 0, old, axis=axis)
    mean = rows.astype(jnp.float32).mean(axis, keepdims=True).astype(leaf.dtype)
    shape = list(leaf.shape)
    shape[axis] = new - old
    more = jnp.broadcast_to(mean, shape)
    shape[axis] = size - new
    return jnp.concatenate([rows, more, jnp.zeros(shape, leaf.dtype)], axis)


def check_extends(old: Tokenizer, new: Tokenizer, init: str) -> None:
    """Raise ConfigError unless every id of `old`, special ones aside, is the same text in `new`.

    The rows of a model belong to ids: under another tokenizer they would be other tokens' rows.
    """
    ordinary = [index for index, size in enumerate(old.token_bytes()) if size]
    if moved := [index for index in ordinary if _text(old, index) != _text(new, index)]:
        raise ConfigError(
            "tokenizer.path",
            f"{len(moved)} of {len(ordinary)} ids, the first {moved[0]}, are other text than in "
            f"the tokenizer of init={init}; add tokens to that one, or leave tokenizer.path out",
        )


def _text(tokenizer: Tokenizer, index: int) -> str | None:
    known = index < tokenizer.vocab
    return tokenizer.decode([index], skip_special=False) if known else None
