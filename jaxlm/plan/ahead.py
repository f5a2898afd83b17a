"""The real step of a run, compiled for TPUs that are not here: the compiler's own word on it.

libtpu compiles for a topology by its name. What is compiled is what the loop compiles: the same
step, objective, optimizer, shardings and attention kernel.
"""

import math
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.config.objectives import Classification
from jaxlm.core import compiler
from jaxlm.core.errors import ConfigError, OutOfMemoryError
from jaxlm.core.mesh import AXES as MESH_AXES
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.core.platform import compiling_for
from jaxlm.core.slices import find
from jaxlm.plan.collectives import Traffic, collectives
from jaxlm.plan.devices import Machine
from jaxlm.plan.memory import is_out_of_memory
from jaxlm.plan.sketch import STEPS, Sketch
from jaxlm.training.building import build
from jaxlm.training.step import TrainState, compile_step

QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Else libtpu asks a metadata server for the TPU that is not here, and lets one process compile."""


@dataclass(frozen=True)
class Ahead:
    """What the compiler says of a step, bytes of one device."""

    arguments: int
    temporaries: int
    peak: int
    """At once; where this jax does not say, arguments and temporaries together."""
    kernels: int
    """Calls of kernels such as splash attention, in the program's text."""
    collectives: dict[str, Traffic]
    seconds: float
    """Of compiling, on this machine."""
    process_bytes: int
    """Most memory of this process so far."""


def compiled(sketch: Sketch) -> Ahead:
    """The step of a sketch, compiled.

    Raises ConfigError without libtpu or for a topology that it does not know, OutOfMemoryError
    when the compiler says that the step does not fit.
    """
    config, spec = sketch.model.config, sketch.model.spec
    devices = topology(sketch.machine)
    jax.config.update("jax_enable_compilation_cache", False)  # what is measured is compiled
    with compiling_for("tpu"):
        sizes = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
        layout = Layout(make_mesh(sizes, slices=_slices(devices, config.mesh.slices)))
        steps = config.steps or STEPS
        built = build(config, spec, layout, steps=steps, tokenizer=None)
        whole = layout.sharding(())
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
        state = TrainState(count, built.params, built.opt_state)  # pyright: ignore
        key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole)
        begun = time.monotonic()
        try:
            given = built.step, state, batch_shapes(sketch, layout), key
            several = len(devices) > 1  # one has nobody to talk to
            options = compiler.wanted("tpu", devices[0].device_kind) if several else {}
            found = _compile(given, options)
        except Exception as error:
            if is_out_of_memory(error):
                said = str(error).splitlines()[0].partition(": ")[2]
                raise OutOfMemoryError("--compile", f"the compiler: {said}") from error
            raise
        seconds = time.monotonic() - begun
    return _said(found, seconds)


def topology(machine: Machine) -> Sequence[Any]:
    """The devices of a machine, as libtpu describes them. Raises ConfigError where it cannot."""
    if machine.device.platform != "tpu":
        what = f"compiles for TPUs, and {machine.device.name} is none; leave it out"
        raise ConfigError("--compile", what)
    if find_spec("libtpu") is None:
        raise ConfigError("--compile", "needs libtpu, which needs no TPU; install jaxlm[tpu]")
    from jax.experimental import topologies

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    more: dict[str, Any] = {"num_slices": machine.slices} if machine.slices > 1 else {}
    if math.prod(machine.sides) == 1:
        more["chips_per_host_bounds"] = (1, 1, 1)  # else a host has four
    sides = "x".join(map(str, machine.sides))
    try:
        with _silent():
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{machine.device.name}:{sides}", **more
            )
    except jax.errors.JaxRuntimeError as error:
        said = f"{machine}: libtpu says {str(error).splitlines()[0]}; plan it without --compile"
        raise ConfigError("--device", said) from error
    if len(found.devices) != machine.count:
        what = f"{machine} has {len(found.devices)} devices for jax, not {machine.count}"
        raise ConfigError("--device", f"{what}; plan it without --compile")
    return found.devices


def _compile(given: Any, options: compiler.Options) -> jax.stages.Compiled:
    """With those of the options that this libtpu knows."""
    while True:
        try:
            return compile_step(*given, options=options)
        except jax.errors.JaxRuntimeError as error:
            if not (odd := compiler.refused(error, options)):
                raise
            options = {name: value for name, value in options.items() if name not in odd}


def _slices(devices: Sequence[Any], count: int) -> list[list[Any]]:
    """As the run has them: so many, or for 0 those of the devices."""
    if count:
        return find(devices, count)
    own = [getattr(device, "slice_index", 0) for device in devices]
    return [[d for d, at in zip(devices, own, strict=True) if at == one] for one in sorted({*own})]


def batch_shapes(sketch: Sketch, layout: Layout) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch, rows split over the devices as the loop splits them."""
    lies, rows = layout.sharding(("batch", None)), sketch.step.batch
    objective = sketch.model.config.objective
    several = isinstance(objective, Classification) and objective.problem != "single"
    real = {"weights", *(["targets"] if several else [])}
    return {
        name: jax.ShapeDtypeStruct(
            (rows, width), jnp.float32 if name in real else jnp.int32, sharding=lies
        )
        for name, width in sketch.model.columns.items()
    }


def _said(found: jax.stages.Compiled, seconds: float) -> Ahead:
    memory: Any = found.memory_analysis()
    text = found.as_text() or ""
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak = getattr(memory, "peak_memory_in_bytes", 0) or arguments + temporaries
    unit = 1 if sys.platform == "darwin" else 1024
    return Ahead(
        arguments=arguments,
        temporaries=temporaries,
        peak=peak,
        kernels=text.count('custom_call_target="tpu_custom_call"'),
        collectives=collectives(text),
        seconds=seconds,
        process_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Without what libtpu writes on standard error about the TPU that is not here."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
