"""What the planner says of a run that begins, so that its report can hold it against the run."""

from collections.abc import Mapping

import jax

from jaxlm.core import tree
from jaxlm.inference.run import shapes
from jaxlm.models.axes import AXES
from jaxlm.plan import devices
from jaxlm.plan.devices import Machine
from jaxlm.plan.sketch import Model, load_of
from jaxlm.plan.steptime import step_time
from jaxlm.training.assemble import Run
from jaxlm.training.optim import state_shapes
from jaxlm.training.shortage import estimated


def planned(run: Run) -> dict[str, float]:
    """`step_seconds` and `memory_bytes` of one device; empty where the planner does not know the
    devices of the run, or how fast they are.
    """
    machine = devices.of(jax.devices())
    return on(run, machine) if machine else {}


def on(run: Run, machine: Machine) -> dict[str, float]:
    """The same as if the run were on that machine."""
    step, use = estimated(run)
    config, mask = run.config, run.keeper.mask
    params = shapes(config, run.spec, run.layout)
    live, _ = tree.partition(params, mask)
    state = state_shapes(run.keeper.optimizer.tx, live, run.layout, AXES)
    cells: Mapping[str, int] = run.data.columns
    model = Model(config, run.spec, params, state, mask, cells)
    time = step_time(load_of(model, step, machine.count), machine)
    return {"step_seconds": time.total, "memory_bytes": use.total} if time else {}
