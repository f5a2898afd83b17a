"""From hidden states to scores: the language-model head, tied or not."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlm.core.mesh import Layout
from jaxlm.core.tree import Params
from jaxlm.models.spec import VOCAB_MULTIPLE, ModelSpec

ABSENT = -1e9
"""The logit of a padded vocabulary row: its probability is exactly 0 in float32."""


def padded_vocab(spec: ModelSpec) -> int:
    """Rows of the embedding: the vocabulary up to the next multiple of VOCAB_MULTIPLE."""
    return -(-spec.vocab // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def select_head(params: Params) -> Params:
    """The leaves that `logits` needs: the head's own kernel, or the tied embedding."""
    return {"head": params["head"]} if "head" in params else {"embed": params["embed"]}


def logits(head: Params, x: Array, *, spec: ModelSpec, layout: Layout, dtype: DTypeLike) -> Array:
    """x [..., D] -> [..., padded V] float32, products in `dtype`; padded columns are ABSENT."""
    kernel = head["head"]["kernel"].T if "head" in head else head["embed"]["embedding"]
    scores = product(x.astype(dtype), kernel.astype(dtype))
    if cap := spec.scale.logits_cap:
        scores = cap * jnp.tanh(scores / cap)
    # Rows stay where x has them: the loss maps this over groups of rows.
    scores = layout.constrain(scores, *[...] * (x.ndim - 1), "vocab")
    rows = kernel.shape[0]
    if spec.vocab == rows:
        return scores
    known = jnp.arange(rows) < spec.vocab
    return jnp.where(known.reshape((1,) * (x.ndim - 1) + (rows,)), scores, ABSENT)


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
    """x [..., D] with kernel [V, D] -> [..., V], summed and returned in float32.

    The backward products stay in the operands' type: with preferred_element_type alone they would
    both be float32 x float32, several times slower on an accelerator.
    """
    return jax.lax.dot_general(
        x, kernel, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    grad = grad.astype(x.dtype)
    rows = tuple(range(x.ndim - 1))
    dx = jax.lax.dot_general(grad, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    dkernel = jax.lax.dot_general(grad, x, ((rows, rows), ((), ())))
    return dx, dkernel


product.defvjp(_forward, _backward)
