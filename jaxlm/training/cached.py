"""Objectives that compare all rows of a batch, computed in parts: cached representations.

Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, section
3.3: the loss needs of each row only what represents it, and its gradient with respect to that.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.core.tree import Params
from jaxlm.objectives.base import Batch, Objective, Sums, added

if TYPE_CHECKING:
    from jaxlm.models.transformer import Forward

CACHED = "cached"
"""Of a batch: each row's gradient of the loss by what represents it, and its sums."""


def by_parts(
    objective: Objective,
    forward: "Forward",
    params: Params,
    batch: Batch,
    keys: Array,
    microbatches: int,
) -> tuple[Objective, Batch]:
    """An objective and a batch whose sums, and their gradients, add up over microbatches to those
    of the whole batch. Both as they are where they do so already.

    All rows are represented without a gradient, part by part, and compared; the objective then
    represents a part again, with the same dropout, and pulls back the gradient that was found.
    """
    if objective.whole is None or microbatches == 1:
        return objective, batch
    represent, compare = objective.whole

    def one(part: tuple[Batch, Array]) -> Array:
        return represent(forward, params, *part)[0]

    found = joined(jax.lax.map(one, split((batch, keys), microbatches)))

    def total(found: Array) -> tuple[Array, Sums]:
        sums = compare(found, batch)
        return sums.loss.sum(), sums

    slope, sums = jax.grad(total, has_aux=True)(found)
    cached: dict[str, Any] = {**batch, CACHED: (slope, sums)}
    return objective._replace(loss=_pulled(objective)), cached


def _pulled(objective: Objective) -> Any:
    assert objective.whole is not None
    represent = objective.whole.represent

    def loss(forward: "Forward", params: Params, batch: Any, keys: Array | None) -> Sums:
        slope, sums = batch[CACHED]
        found, aux = represent(forward, params, batch, keys)
        product = (found * slope).sum()  # its gradient is the loss's, its value is not
        sums = jax.tree.map(lambda x: x.sum(0), sums)
        still = product - jax.lax.stop_gradient(product)
        return added(sums._replace(loss=sums.loss + still), aux)

    return loss


def split(tree: Any, parts: int) -> Any:
    """Arrays [B, ...] -> [parts, B / parts, ...]. Row r goes to part r % parts: every device keeps
    the rows it has.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), tree)


def joined(x: Array) -> Array:
    """The inverse of `split`: [parts, B / parts, ...] -> [B, ...]."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
