"""Labels of texts and of words: cross-entropy, one for each label, or squared errors.

Of texts, what a head pools is scored, K texts a row; of words, the hidden state at each one's first
token.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.objectives import counts, entities
from jaxlm.objectives.base import Batch, Objective, Sums, added
from jaxlm.objectives.lm import real_tokens

Told = dict[str, Array]


def single(
    labels: Sequence[str],
    *,
    words: bool = False,
    smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Objective:
    """The likelihood of one label of a text, or of each word.

    As torch's CrossEntropyLoss with `weight` and `label_smoothing` (Szegedy et al. 2016, section
    7), a mean over the weights of what is told. targets int32 and weights [B, K], of words [B, L].
    accuracy: in training by these weights too.
    """
    scheme = entities.scheme(labels) if words else None

    def loss(forward: Any, params: dict[str, Any], batch: Batch, keys: Array | None) -> Sums:
        scores, aux = _scores(forward, params, batch, keys, words)
        logs, targets = jax.nn.log_softmax(scores), batch["targets"]
        weight = jnp.asarray(class_weights or [1.0] * len(labels), jnp.float32)
        own = weight[targets] * batch["weights"]
        nll = -jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
        sums = (1 - smoothing) * (nll * own).sum()
        if smoothing:
            alike = -jnp.einsum("blc,c->bl", logs, weight) / len(labels)
            sums += smoothing * (alike * batch["weights"]).sum()
        found = scores.argmax(-1)
        extra: Told = {"accuracy": ((found == targets) * own).sum(), "tokens": real_tokens(batch)}
        if keys is None:
            extra |= counts.confused(targets, found, batch["weights"], len(labels))
            extra |= counts.calibrated(jnp.exp(logs.max(-1)), found == targets, batch["weights"])
        if keys is None and scheme:
            at = batch["weights"] > 0
            extra |= entities.counted(scheme, targets, found, batch["segments"], at)
        return added(Sums(sums, own.sum(), {}, extra), aux)

    return Objective(loss, partial(_single_columns, "words" if words else "examples"))


def multi(labels: Sequence[str]) -> Objective:
    """The likelihood of each label of a text by itself, a mean over labels, as transformers has it.

    targets float32 [B, K x C], 1 where a label is there; weights [B, K]. accuracy: the share of
    texts of which every label is right.
    """

    def loss(forward: Any, params: dict[str, Any], batch: Batch, keys: Array | None) -> Sums:
        scores, aux = _scores(forward, params, batch, keys, False)
        targets, weights = batch["targets"].reshape(scores.shape), batch["weights"]
        each = jnp.maximum(scores, 0) - scores * targets + jnp.log1p(jnp.exp(-jnp.abs(scores)))
        found, true = scores > 0, targets > 0
        right = (found == true).all(-1)
        extra: Told = {"accuracy": (right * weights).sum(), "tokens": real_tokens(batch)}
        if keys is None:
            every = jnp.broadcast_to(weights[..., None], scores.shape)
            extra |= counts.matched(true, found, every)
            extra |= counts.calibrated(jax.nn.sigmoid(jnp.abs(scores)), found == true, every)
        sums = Sums((each.mean(-1) * weights).sum(), weights.sum(), {}, extra)
        return added(sums, aux)

    return Objective(loss, _multi_columns)


def regression() -> Objective:
    """The mean squared error of the numbers of a text, as transformers has it.

    targets float32 [B, K x C]; weights [B, K].
    """

    def loss(forward: Any, params: dict[str, Any], batch: Batch, keys: Array | None) -> Sums:
        scores, aux = _scores(forward, params, batch, keys, False)
        targets, weights = batch["targets"].reshape(scores.shape), batch["weights"]
        each = jnp.square(scores - targets).mean(-1)
        extra: Told = {"tokens": real_tokens(batch)}
        if keys is None:
            every = jnp.broadcast_to(weights[..., None], scores.shape)
            extra |= counts.moments(targets, scores, every)
        return added(Sums((each * weights).sum(), weights.sum(), {}, extra), aux)

    return Objective(loss, _regression_columns)


def _scores(
    forward: Any, params: dict[str, Any], batch: Batch, keys: Array | None, words: bool
) -> tuple[Array, Any]:
    """(float32 [B, K, C], or [B, L, C] of words; what the network adds to the loss)."""
    hidden, aux = forward.hidden(params, batch, keys)
    if not words:
        hidden = forward.pooled(hidden, batch, batch["weights"].shape[1])
    return forward.logits(forward.head(params), hidden), aux


def _single_columns(
    what: str, loss: float, weight: float, extra: Mapping[str, Any]
) -> dict[str, float]:
    table = extra["confusion"]
    found = counts.of_confusion(table) | counts.calibration(extra["calibration"])
    if "entities" in extra:
        found |= counts.of_entities(extra["entities"])
    return {**found, what: int(table.sum())}


def _multi_columns(loss: float, weight: float, extra: Mapping[str, Any]) -> dict[str, float]:
    found = counts.of_matches(extra["matches"]) | counts.calibration(extra["calibration"])
    exact = {"accuracy": counts.share(extra["accuracy"], weight)}
    return {**exact, **found, "examples": int(weight)}


def _regression_columns(loss: float, weight: float, extra: Mapping[str, Any]) -> dict[str, float]:
    return {**counts.of_moments(extra["moments"]), "examples": int(weight)}
