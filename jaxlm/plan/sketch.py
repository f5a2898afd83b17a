"""A configuration on a machine that is not here: shapes, memory and time of its step.

What does not depend on the mesh is made once (`Model`), so that many meshes can be tried.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax

from jaxlm.config.objectives import Contrastive, Labels, Mlm
from jaxlm.config.schema import RunConfig
from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError, ConfigError, DataError
from jaxlm.core.mesh import AXES as MESH_AXES
from jaxlm.core.mesh import Layout, abstract_mesh
from jaxlm.core.platform import MEMORY, check_platform, compiling_for
from jaxlm.core.sizes import check_batch, check_slices
from jaxlm.core.tree import Mask, Params
from jaxlm.models.axes import AXES, check_divides
from jaxlm.models.quantize import numbers
from jaxlm.models.spec import ModelSpec
from jaxlm.objectives.kinds import SENTINELS
from jaxlm.plan.devices import Machine
from jaxlm.plan.memory import Step, Use, estimate, step_of
from jaxlm.plan.steptime import Load, Time, step_time
from jaxlm.training.building import build
from jaxlm.training.classifier import headed
from jaxlm.training.facts import EXPERT, facts, keys_seen, multiplying
from jaxlm.training.objective import check_fits
from jaxlm.training.state import architecture, inherit

Sizes = dict[str, int]
"""Devices by mesh axis."""
KERNELS = "cudnn", "splash"
"""Attention that not every device, type and shape can have."""
STEPS = 1000
"""Of a run whose configuration says epochs: its data is not read."""


@dataclass(frozen=True)
class Model:
    """What a run trains, as shapes: the same on every mesh."""

    config: RunConfig
    spec: ModelSpec
    params: Params
    opt_state: optax.OptState
    mask: Mask
    cells: Mapping[str, int] | None = None
    """Of each array of a batch its columns, where the data is known."""

    @cached_property
    def columns(self) -> Mapping[str, int]:
        """Of each array of a batch, its columns."""
        return self.cells or columns(self.config, self.spec)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Parameters and FLOPs per token."""
        live, frozen = tree.partition(self.params, self.mask)
        return facts(live, frozen, self.spec, self.columns)


@dataclass(frozen=True)
class Sketch:
    """A model on a mesh of a machine."""

    model: Model
    machine: Machine
    sizes: Sizes
    step: Step
    use: Use
    load: Load

    @property
    def tokens(self) -> int:
        """Of one step, over all devices."""
        per_row = self.model.columns["tokens"] + self.model.columns.get("source", 0)
        return self.step.batch * per_row

    @cached_property
    def time(self) -> Time | None:
        """Of one step; None where the device's speed is not known."""
        return step_time(self.load, self.machine)

    @property
    def limit(self) -> float | None:
        """Bytes that a program can have of a device."""
        memory = self.machine.device.memory
        share = float(MEMORY) if self.machine.device.platform == "gpu" else 1.0
        return memory and share * memory

    @property
    def fits(self) -> bool | None:
        """Whether the estimate is within the device's memory; None where that is not known."""
        return None if self.limit is None else self.use.total <= self.limit


def resolved(config: RunConfig) -> RunConfig:
    """With the architecture of `init` and every field of the model filled; no data is read.

    Raises ConfigError where the vocabulary is the tokenizer's, and the tokenizer is not here.
    """
    config = _labeled(_inherited(config))
    check_fits(config.objective.type, config.model)
    return config.model_copy(update={"model": _filled(config)})


def _inherited(config: RunConfig) -> RunConfig:
    try:
        return inherit(config)
    except DataError as error:
        if not config.tokenizer.path:
            raise  # of init itself
        what = f"{error}; or write tokenizer.path=null for that of init"
        raise ConfigError("tokenizer.path", what) from error


def _filled(config: RunConfig) -> ModelSpec:
    try:
        return architecture(config)
    except (DataError, CheckpointError) as error:
        what = f"{error}; or say how many ids it has, with model.vocab=N"
        raise ConfigError("tokenizer.path", what) from error


def _labeled(config: RunConfig) -> RunConfig:
    """With a head for as many labels as it names, or for two, since no data is read."""
    chosen = config.objective
    if not isinstance(chosen, Labels):
        return config
    if chosen.class_weights == "balanced":
        chosen = chosen.model_copy(update={"class_weights": None})
    chosen = chosen.labeled(chosen.labels or ("0", "1"))
    return headed(config.model_copy(update={"objective": chosen}))


def model(config: RunConfig, platform: str) -> Model:
    """The shapes of a resolved configuration, in the types that it has on a platform.

    Raises ConfigError for a run that computes elsewhere, or cannot train so.
    """
    check_platform(config.platform, platform, "--device")
    one = Layout(abstract_mesh({}, 1))
    with compiling_for(platform):
        built = build(config, config.model, one, steps=config.steps or STEPS, tokenizer=None)
        if config.model.attention in KERNELS:  # what one cannot run is said where it is traced
            cells = columns(config, config.model)
            row = {name: jax.ShapeDtypeStruct((1, n), "int32") for name, n in cells.items()}
            jax.eval_shape(built.forward.hidden, built.params, row, None)
    return Model(config, config.model, built.params, built.opt_state, built.mask)


def sketch(model: Model, machine: Machine, config: RunConfig | None = None) -> Sketch:
    """The model on the mesh of `config`, its own by default: one that differs from it in mesh,
    batch, microbatches, length, remat or attention alone.

    Raises ConfigError for what does not divide.
    """
    config = config or model.config
    given = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
    layout = Layout(abstract_mesh(given, machine.count))
    sizes = dict(layout.mesh.shape)
    check_divides(config.model, layout)
    check_batch(config.batch, config.microbatches, layout.size("batch"))
    check_slices(config.mesh.slices, machine.count, machine.slices)
    spec = config.model
    cells = columns(config, spec)
    with compiling_for(machine.device.platform):
        step = step_of(config, spec, cells, sizes)
    placed = layout.placed(model.params, AXES), layout.placed(model.opt_state, AXES)
    use = estimate(step, *placed, model.mask)
    load = load_of(replace(model, config=config, spec=spec), step, machine.count)
    return Sketch(replace(model, config=config, spec=spec), machine, sizes, step, use, load)


def columns(config: RunConfig, spec: ModelSpec) -> dict[str, int]:
    """Of each array of a batch, its columns: rows full of `length` tokens."""
    length, objective = config.length, config.objective
    pair = spec.structure == "encoder-decoder"
    target = length // 2 if pair and objective.type in SENTINELS else length  # about so long
    names = "tokens", "segments", "positions", *(["types"] if spec.embedding.types else [])
    found: dict[str, int] = dict.fromkeys(names, target)
    if pair:
        found |= dict.fromkeys(("source", "source_segments", "source_positions"), length)
    scored = target
    if isinstance(objective, Mlm):
        scored = found["at"] = max(1, round(objective.rate * length))
    elif spec.head.labels and spec.head.pool != "none":
        scored = 1
    if not isinstance(objective, Contrastive):
        found |= {"targets": scored, "weights": scored}
    return found


def load_of(model: Model, step: Step, devices: int) -> Load:
    """What each of so many devices does in a step."""
    spec, found = model.spec, model.facts
    length = model.columns["tokens"]
    share = model.columns.get("source", 0) / length or 1.0
    seen = keys_seen(spec, length, share)
    depth = {"decoder": spec.layers, "encoder": spec.encoder.layers or spec.layers}
    looked = sum(seen[stack] * depth[stack] for stack in seen)
    pair = spec.structure == "encoder-decoder"
    attention = 12 * looked * spec.heads * spec.head_dim / ((1 + share) if pair else 1)
    attention = min(attention, found["flops_per_token"])
    leaves = tree.flatten(model.params)
    again = {n: leaf for n, leaf in leaves.items() if "blocks/" in n and "/down/" not in n}
    repeats = multiplying(tree.unflatten(again), spec, source=1.0, head=0.0)
    per_row = length + model.columns.get("source", 0)
    itemsize = np.dtype(step.compute_dtype).itemsize
    experts = {name: numbers(name, leaf) for name, leaf in leaves.items() if EXPERT.search(name)}
    return Load(
        tokens=step.batch * per_row / devices,
        layers=spec.layers + (spec.encoder.layers if pair else 0),
        embed=spec.embed,
        mlp=spec.mlp * (spec.experts.chosen if spec.experts.count else 1),
        product_flops=found["flops_per_token"] - attention,
        again_flops=2.0 * repeats if spec.remat == "full" else 0.0,
        attention_flops=attention,
        attention_again=spec.remat == "full",
        parameters=found["parameters"],
        trained=found["trained"],
        remat=spec.remat,
        microbatches=step.microbatches,
        data=step.data,
        fsdp=step.fsdp,
        expert=step.expert,
        tensor=step.tensor,
        experts=sum(experts.values()),
        experts_trained=sum(n for name, n in experts.items() if name in model.mask),
        gathered=itemsize,
        reduced=itemsize,
    )
