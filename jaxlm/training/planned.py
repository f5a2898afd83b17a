"""What the planner says of a run that begins, so that its report can hold it against the run."""

import jax

from jaxlm.plan import devices
from jaxlm.plan.devices import Machine
from jaxlm.plan.sketch import Model, load_of
from jaxlm.plan.steptime import step_time
from jaxlm.training.assemble import Run
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
    built, cells = run.built, run.data.columns
    model = Model(run.config, run.spec, built.params, built.opt_state, built.mask, cells)
    time = step_time(load_of(model, step, machine.count), machine)
    return {"step_seconds": time.total, "memory_bytes": use.total} if time else {}
