"""What an objective is: a batch to sums. Everything reported is a sum, so it adds across
microbatches and devices and is divided once.

Batch = dict of arrays [B, n]: what `Forward` reads, targets and their weights (float32) [B, L]. Of
those who predict at few places: `at` int32 [B, M], columns of the tokens, and targets and weights
[B, M].
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from jax import Array

if TYPE_CHECKING:
    from jaxlm.models.balance import Aux
    from jaxlm.models.transformer import Forward

Batch = dict[str, Array]


class Sums(NamedTuple):
    """Totals over the tokens of a batch. The step differentiates loss plus every auxiliary."""

    loss: Array
    """The pure objective, summed over weighted tokens."""
    weight: Array
    """What loss and the others are divided by, once, when everything is added up."""
    auxiliary: dict[str, Array]
    """Terms that are added to the loss, already weighted, each reported under its own name."""
    extra: dict[str, Array]
    """Sums that are only reported."""


class Whole(NamedTuple):
    """An objective in whose loss each row depends on the others, so that it needs the whole batch.

    The sums of `compare` are of each row, [B, ...], its auxiliary ones none: added up over the
    batch they are those of `Objective.loss`.
    """

    represent: Callable[["Forward", dict[str, Any], Batch, Array | None], tuple[Array, "Aux"]]
    """(forward, params, batch, keys) -> what is compared [B, ...], each row's by itself, and what
    the network adds."""
    compare: Callable[[Array, Batch], Sums]
    """(what is compared, its whole batch) -> sums of each row."""


class Objective(NamedTuple):
    """One way to learn. `loss` is pure and runs on the device."""

    loss: Callable[["Forward", dict[str, Any], Batch, Array | None], Sums]
    """(forward, params, batch, a key per row or None) -> sums. No key: evaluation, where `extra`
    may have sums of any shape; in training each is a number, and among them are `tokens`."""
    scores: Callable[[float, float, Mapping[str, Any]], dict[str, float]]
    """(loss, weight, extra) of a whole evaluation -> its columns beside the loss."""
    whole: Whole | None = None
    """What `loss` is made of where it needs the whole batch; None: rows are added up."""


def added(sums: Sums, aux: "Aux") -> Sums:
    """The sums with what the network adds to them: its means times the weight.

    So a term of routers is one of each microbatch, and a run's is the mean of these.
    """
    loss, figures = ({name: mean * sums.weight for name, mean in each.items()} for each in aux)
    return sums._replace(auxiliary=sums.auxiliary | loss, extra=sums.extra | figures)
