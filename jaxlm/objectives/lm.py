"""Language modelling: one cross-entropy. What is predicted is decided on the host."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlm.objectives.base import Batch, Objective, Sums, added
from jaxlm.objectives.divergence import Base, divergence
from jaxlm.objectives.xent import cross_entropy


def language_model(
    *,
    z_loss: float,
    shards: int,
    token_bytes: np.ndarray | None = None,
    kl_to_base: float = 0.0,
    base: Base | None = None,
) -> Objective:
    """The likelihood of target ids (Radford et al. 2018, eq. 1), with z * log(Z)^2 (Chowdhery et
    al. 2022, section 5).

    shards: number of devices that the batch is split over; it sizes the chunks of the loss.
    token_bytes: [V], of UTF-8 in each id; then evaluation has bits per byte. kl_to_base: weight of
    KL(base || tuned) at the weighted tokens while training; base: from parameters to those of the
    base, to which no gradient flows.
    """

    def loss(forward: Any, params: dict[str, Any], batch: Batch, keys: Array | None) -> Sums:
        hidden, aux = forward.hidden(params, batch, keys)
        hidden, weights = _predicting(hidden, batch), batch["weights"]
        sums = cross_entropy(
            forward.logits,
            forward.head(params),
            hidden,
            batch["targets"],
            weights,
            z=z_loss,
            shards=shards,
        )
        auxiliary = {"z_loss": sums.z_loss} if z_loss else {}
        if kl_to_base and base and keys is not None:
            before = jax.lax.stop_gradient(base(params))
            kl = divergence(
                forward.logits,
                (forward.head(before), _predicting(forward.hidden(before, batch, None)[0], batch)),
                (forward.head(params), hidden),
                weights,
                shards=shards,
            )
            auxiliary["kl_to_base"] = kl_to_base * kl
        extra = {"accuracy": sums.correct, "tokens": real_tokens(batch)}
        if keys is None and token_bytes is not None:
            count = jnp.asarray(token_bytes, jnp.float32)[batch["targets"]]
            extra["bytes"] = (count * weights).sum()
        return added(Sums(sums.loss, weights.sum(), auxiliary, extra), aux)

    return Objective(loss, _scores)


def real_tokens(batch: Batch) -> Array:
    """How many tokens of a batch are no filler, int32 []; a source's are among them."""
    return sum((batch[n] > 0).sum() for n in ("segments", "source_segments") if n in batch)  # pyright: ignore


def _predicting(hidden: Array, batch: Batch) -> Array:
    """The hidden states [B, M, D] that targets are predicted from: at `at`, or all."""
    if "at" not in batch:
        return hidden
    return jnp.take_along_axis(hidden, batch["at"][..., None], axis=1)


def _scores(loss: float, weight: float, extra: Mapping[str, Any]) -> dict[str, float]:
    """Perplexity, accuracy, how many ids were predicted and, where known, bits per byte."""
    found = {"perplexity": math.exp(min(loss / weight, 700.0)) if weight else math.nan}
    if count := extra.get("bytes"):
        found["bits_per_byte"] = loss / math.log(2) / count
    found["accuracy"] = extra["accuracy"] / weight if weight else math.nan
    return {**found, "tokens": int(weight)}
