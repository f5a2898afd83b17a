"""From a configuration to its step: what a run trains, how, and where every array lies.

Shapes alone, on the devices of any mesh: those that are here, or those of a topology that is not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import optax

from jaxlm.config.optimizers import AdamW
from jaxlm.config.schema import RunConfig
from jaxlm.core import tree
from jaxlm.core.mesh import Layout
from jaxlm.core.tree import Mask, Params
from jaxlm.inference.run import compute_dtype, shapes, trained
from jaxlm.models.axes import AXES
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import Forward, make_forward
from jaxlm.objectives.base import Objective
from jaxlm.objectives.divergence import Base
from jaxlm.text.tokenizer import Tokenizer
from jaxlm.training import classifier, gauges, optim
from jaxlm.training.objective import check_base, make_objective
from jaxlm.training.optim import Optimizer
from jaxlm.training.step import TrainState, train_step

Step = Callable[[TrainState, dict[str, Any], Any], tuple[TrainState, dict[str, Any]]]


@dataclass(frozen=True)
class Built:
    """A step and what it is made of. Parameters and state are ShapeDtypeStructs with shardings."""

    step: Step
    forward: Forward
    objective: Objective
    optimizer: Optimizer
    base: Base | None
    """From parameters to those of the base, where they are beside what is tuned."""
    mask: Mask
    """The names of what trains."""
    params: Params
    opt_state: optax.OptState

    @property
    def live(self) -> Params:
        """What trains."""
        return tree.partition(self.params, self.mask)[0]

    @property
    def frozen(self) -> Params:
        """The rest."""
        return tree.partition(self.params, self.mask)[1]


def build(
    config: RunConfig, spec: ModelSpec, layout: Layout, *, steps: int, tokenizer: Tokenizer | None
) -> Built:
    """The step of a run whose architecture is `spec`, filled.

    tokenizer: for bits per byte in evaluations; a step needs none. Raises ConfigError for what
    cannot be trained so.
    """
    forward = make_forward(spec, layout, compute_dtype(config.compute_dtype))
    want = shapes(config, spec, layout)
    if config.optimizer.no_decay != AdamW().no_decay:  # the default's own need not all be there
        tree.select(want, config.optimizer.no_decay, "optimizer.no_decay")
    mask = trained(config, want)
    classifier.check_trained(config, want, mask)
    base = gauges.base_beside(mask)
    check_base(config, base)
    objective = make_objective(config, layout, tokenizer, base)
    live, _ = tree.partition(want, mask)
    rate = config.lora.b_rate if config.lora.rank else 1.0
    optimizer = optim.build(config.optimizer, live, steps=steps, axes=AXES, b_rate=rate)
    step = partial(
        train_step,
        forward=forward,
        objective=objective,
        tx=optimizer.tx,
        trainable=mask,
        microbatches=config.microbatches,
    )
    state = optim.state_shapes(optimizer.tx, live, layout, AXES)
    return Built(step, forward, objective, optimizer, base, mask, want, state)
