"""From hidden states to scores: of the vocabulary, tied or not, or of a classifier's labels."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlm.core.mesh import Layout
from jaxlm.core.parts import NEW_ROWS
from jaxlm.core.tree import Params
from jaxlm.models.dense import Dense, whole
from jaxlm.models.layers import ACTIVATIONS, Normalize
from jaxlm.models.rows import scored
from jaxlm.models.spec import ModelSpec, padded_vocab

ABSENT = -1e9
"""The logit of a padded vocabulary row: its probability is exactly 0 in float32."""


class Head(nn.Module):
    """The head's leaves, and what it does before it scores: x [..., D] -> [..., D].

    A transform is a product, a nonlinearity and a norm (Devlin et al. 2018, appendix A.2).
    """

    spec: ModelSpec
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        spec, head, init = self.spec, self.spec.head, nn.initializers.normal(self.spec.init_scale)
        if self.is_initializing():
            self._declare(init)
        if head.transform != "none":
            square = (spec.embed,), (spec.embed,), self.dtype, head.transform_bias, spec.init_scale
            x = ACTIVATIONS[head.transform](Dense(*square, name="transform")(x))
        return Normalize(spec.norm, name="norm")(x) if head.norm else x

    def _declare(self, init: Any) -> None:
        """The leaves of the scores themselves."""
        spec, head = self.spec, self.spec.head
        if head.labels:
            labels = (spec.embed,), (head.labels,), self.dtype, head.bias, spec.init_scale
            Dense(*labels, name="labels")(jnp.zeros((1, spec.embed)))
            return
        if not spec.tied:
            self.param("kernel", init, (spec.embed, padded_vocab(spec)))
        if head.bias:
            self.param("bias", nn.initializers.zeros, (padded_vocab(spec),))


def select_head(params: Params, spec: ModelSpec) -> Params:
    """The leaves that `logits` needs: the head's own, and the embedding where it is tied."""
    own = {"head": params["head"]} if "head" in params else {}
    tied = spec.tied and not spec.head.labels
    return {**own, "embed": params["embed"]} if tied else own


def logits(head: Params, x: Array, *, spec: ModelSpec, layout: Layout, dtype: DTypeLike) -> Array:
    """x [..., D] -> [..., padded V] float32, products in `dtype`; padded columns are ABSENT.

    Of a classifier [..., labels].
    """
    own = head.get("head", {})
    x = x.astype(dtype)
    if spec.head.transform != "none":
        x = Head(spec, dtype).apply({"params": own}, x)  # pyright: ignore[reportAssignmentType]
    x = x * jnp.asarray(spec.scale.output, x.dtype) if spec.scale.output != 1 else x
    if spec.head.labels:
        scores = product(x, own["labels"]["kernel"].T.astype(dtype))
        return scores + whole(own["labels"]["bias"], scores) if spec.head.bias else scores
    kernel = head["embed"]["embedding"] if spec.tied else own["kernel"].T
    scores = product(x, kernel.astype(dtype))
    if (new := head["embed" if spec.tied else "head"].get(NEW_ROWS)) is not None:
        scores = scored(scores, product(x, new.astype(dtype)), spec.vocab)
    if spec.head.bias:
        scores += whole(own["bias"], scores)
    if cap := spec.scale.logits_cap:
        scores = cap * jnp.tanh(scores / cap)
    # Rows stay where x has them: the loss maps this over groups of rows.
    scores = layout.constrain(scores, *[...] * (x.ndim - 1), "vocab")
    rows = kernel.shape[0]
    if spec.vocab == rows:
        return scores
    known = jnp.arange(rows) < spec.vocab
    return jnp.where(known.reshape((1,) * (x.ndim - 1) + (rows,)), scores, ABSENT)


def pooled(x: Array, segments: Array | None, how: str) -> Array:
    """Hidden states x [B, L, D] -> what a classifier scores [B, D], or x when `how` is none.

    segments [B, L] int32, 0 for padding; None: no padding. One sequence a row.
    """
    if how == "none":
        return x
    real = None if segments is None else segments > 0
    return pooled_segments(x, real, 1, how)[:, 0]


def pooled_segments(x: Array, segments: Array | None, count: int, how: str) -> Array:
    """Hidden states x [B, L, D] of several sequences a row -> one state of each [B, count, D].

    segments [B, L] int32: segment k + 1 is at place k; None: each row is one. how: first, last, or
    mean, which is summed in float32. Of a segment that a row lacks: some state, or zeros for the
    mean.
    """
    if segments is None:
        segments = jnp.ones(x.shape[:2], jnp.int32)
    own = segments[:, None] == jnp.arange(1, count + 1)[None, :, None]  # [B, count, L]
    if how == "mean":
        among = own.astype(x.dtype)
        total = jnp.einsum("bkl,bld->bkd", among, x, preferred_element_type=jnp.float32)
        return (total / jnp.maximum(own.sum(2, keepdims=True), 1)).astype(x.dtype)
    places = jnp.arange(x.shape[1])
    last = jnp.max(jnp.where(own, places[None, None], 0), axis=2)
    at = jnp.argmax(own, axis=2) if how == "first" else last
    return jnp.take_along_axis(x, at[..., None], axis=1)


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
