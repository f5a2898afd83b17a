"""Language modelling: one cross-entropy. What is predicted is decided on the host."""

from typing import Any

from jax import Array

from jaxlm.objectives.base import Batch, Objective, Sums
from jaxlm.objectives.xent import cross_entropy


def clm(*, z_loss: float, shards: int) -> Objective:
    """The next token (Radford et al. 2018, eq. 1), with z * log(Z)^2 (Chowdhery et al. 2022, 5).

    shards: number of devices that the batch is split over; it sizes the chunks of the loss.
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
