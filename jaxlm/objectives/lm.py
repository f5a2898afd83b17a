"""Language modelling: one cross-entropy. What is predicted is decided on the host."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from jaxlm.objectives.base import Batch, Objective, Sums
from jaxlm.objectives.divergence import divergence
from jaxlm.objectives.xent import cross_entropy


def clm(
    *, z_loss: float, shards: int, kl_to_base: float = 0.0, base: Callable[[Any], Any] | None = None
) -> Objective:
    """The next token (Radford et al. 2018, eq. 1), with z * log(Z)^2 (Chowdhery et al. 2022, 5).

    shards: number of devices that the batch is split over; it sizes the chunks of the loss.
    kl_to_base: weight of KL(base || tuned) at the weighted tokens while training; base: from
    parameters to those of the base, to which no gradient flows.
    """

    def loss(forward: Any, params: dict[str, Any], batch: Batch, keys: Array | None) -> Sums:
        hidden, auxiliary = forward.hidden(params, batch, keys)
        weights = batch["weights"]
        sums = cross_entropy(
            forward.logits,
            forward.head(params),
            hidden,
            batch["targets"],
            weights,
            z=z_loss,
            shards=shards,
        )
        if z_loss:
            auxiliary = {**auxiliary, "z_loss": sums.z_loss}
        if kl_to_base and base and keys is not None:
            before = jax.lax.stop_gradient(base(params))
            kl = divergence(
                forward.logits,
                (forward.head(before), forward.hidden(before, batch, None)[0]),
                (forward.head(params), hidden),
                weights,
                shards=shards,
            )
            auxiliary = {**auxiliary, "kl_to_base": kl_to_base * kl}
        return Sums(
            sums.loss,
            weights.sum(),
            auxiliary,
            {
                "accuracy": sums.correct,
                "tokens": (batch["segments"] > 0).sum(),
            },
        )

    return Objective(loss, structures=("decoder",))


OBJECTIVES = {"clm": clm, "sft": clm}  # which tokens have a weight is decided on the host
