"""The meshes that a run can have on a machine, the fastest first, and what makes it fit."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from jaxlm.config.reader import read_value
from jaxlm.config.schema import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.models.spec import ModelSpec
from jaxlm.plan.devices import Device, Machine, toruses
from jaxlm.plan.devices import machine as parse
from jaxlm.plan.sketch import Model, Sketch, model, sketch

REMAT = "none", "products", "full"
LEAST_ROWS = 32
"""Of a dimension that fsdp splits on a TPU: with 16 (llama3_70b over 512) the compiler turns every
gather of 16-bit parameters into an all-reduce of twice the bytes, with 64 it does not."""
ALONE = ("mesh.slices=0",)
"""On a machine of another size: how many slices it has, it says itself."""
MOST_PARTS = 64
"""Microbatches that are tried."""


class Option(NamedTuple):
    """A mesh with what goes with it, as overrides of the configuration."""

    overrides: tuple[str, ...]
    sketch: Sketch


def ranked(given: Sketch, most: int = 5) -> list[Option]:
    """Meshes that divide the model and its batch, each with the remat and the fewest microbatches
    that are fastest among what fits; where nothing fits, those that lack least.
    """
    found: list[Option] = []
    for sizes in meshes(given.machine, given.model.spec):
        options = [option for option in _ways(given, sizes) if option]
        if fitting := [option for option in options if option.sketch.fits is not False]:
            found.append(min(fitting, key=_seconds))
        elif options:
            found.append(min(options, key=lambda option: option.sketch.use.total))
    if any(option.sketch.fits for option in found):
        found = [option for option in found if option.sketch.fits]
        return sorted(found, key=_seconds)[:most]
    return sorted(found, key=lambda option: option.sketch.use.total)[:most]


def meshes(machine: Machine, spec: ModelSpec) -> Iterator[dict[str, int]]:
    """data x fsdp x expert x tensor over all devices; tensor within the fast network, and no more
    expert than experts.
    """
    most = spec.embed // LEAST_ROWS if machine.device.torus else machine.count
    count = machine.count
    for tensor in _divisors(count):
        if tensor <= 64 and machine.domain % tensor == 0:
            for data in _divisors(count // tensor):
                fsdp = count // tensor // data
                if fsdp <= max(1, most):
                    for expert in _divisors(math.gcd(fsdp, spec.experts.count or 1)):
                        each = {"fsdp": fsdp // expert, "expert": expert}
                        yield {"data": data, **each, "tensor": tensor}


def nearest(given: Sketch) -> list[Option]:
    """The smallest changes that make it fit, the fastest first; empty where none was found.

    One key is changed before two, and what changes no update before what does: microbatches, remat
    and the mesh; then how state is stored; then the batch.
    """
    config, machine, tried = given.model.config, given.machine, given.model
    same = [*_parts(config), *_remat(config)]
    mesh = [_mesh_words(sizes) for sizes in meshes(machine, config.model)]
    rounds: list[list[tuple[str, ...]]] = [
        [(word,) for word in same],
        mesh,
        [(a, b) for a in _parts(config) for b in _remat(config)],
        [(*words, *_remat(config)[-1:]) for words in mesh],
        [(*words, part, *_remat(config)[-1:]) for words in mesh for part in _parts(config)],
    ]
    for changes in rounds:
        found = [option for words in changes if (option := _changed(tried, machine, words))]
        if fitting := [option for option in found if option.sketch.fits]:
            return sorted(fitting, key=_seconds)[:3]
    for words in _smaller_state(config):
        other = model(changed(config, words), machine.device.platform)
        for more in ((), *((part, *_remat(config)[-1:]) for part in _parts(config))):
            option = _changed(other, machine, (*more,))
            if option and option.sketch.fits:
                return [Option((*words, *more), option.sketch)]
    return []


def _seconds(option: Option) -> float:
    time = option.sketch.time
    return time.total if time else float(option.sketch.use.total)


def _ways(given: Sketch, sizes: dict[str, int]) -> Iterator[Option | None]:
    """A mesh with each remat and the fewest microbatches with which it fits."""
    config = given.model.config
    rows = config.batch // (sizes["data"] * sizes["fsdp"] * sizes["expert"])
    parts = [n for n in (2**i for i in range(7)) if n <= min(rows, MOST_PARTS)]
    for remat in REMAT:
        last = None
        for part in parts:
            words = (*_mesh_words(sizes), f"microbatches={part}", f"model.remat={remat}")
            option = _changed(given.model, given.machine, words)
            last = option or last
            if option and option.sketch.fits is not False:
                break
        yield last


def _changed(tried: Model, machine: Machine, words: tuple[str, ...]) -> Option | None:
    """The option of these overrides; None where something does not divide."""
    try:
        return Option(words, sketch(tried, machine, changed(tried.config, words)))
    except ConfigError:
        return None


def _mesh_words(sizes: dict[str, int]) -> tuple[str, ...]:
    return tuple(f"mesh.{axis}={size}" for axis, size in sizes.items())


def _parts(config: RunConfig) -> list[str]:
    more = (config.microbatches * 2**i for i in range(1, 7))
    return [f"microbatches={n}" for n in more if n <= config.batch and config.batch % n == 0]


def _remat(config: RunConfig) -> list[str]:
    return [f"model.remat={kind}" for kind in REMAT[REMAT.index(config.model.remat) + 1 :]]


def _smaller_state(config: RunConfig) -> Iterator[tuple[str, ...]]:
    """Changes of what is stored, the mildest first."""
    optimizer: Any = config.optimizer
    moment = () if optimizer.state_dtype == "bfloat16" else ("optimizer.state_dtype=bfloat16",)
    if moment and optimizer.type in ("adamw", "lion", "muon"):
        yield moment
    if config.param_dtype == "float32" and optimizer.type != "schedule_free_adamw":
        yield (*moment, "param_dtype=bfloat16")


def larger(given: Sketch) -> Option | None:
    """On the fewest devices of the kind, from twice as many on, that hold it in some way."""
    config = changed(given.model.config, ALONE)
    one = replace(given, model=replace(given.model, config=config))
    for times in (2**i for i in range(1, 8)):
        more = of_count(given.machine.device, given.machine.count * times)
        for option in ranked(replace(one, machine=more), 1) if more else []:
            if option.sketch.fits:
                return Option((*ALONE, *option.overrides), option.sketch)
    return None


def of_count(device: Device, count: int) -> Machine | None:
    """So many devices, of TPUs one slice or several of the largest; None where that cannot be."""
    words = f"{device.name}:{count}"
    if device.torus:
        sizes = {math.prod(map(int, t.split("x"))): t for t in reversed(toruses(device.name))}
        part = count if count in sizes else max(sizes)
        words = f"{device.name}:{sizes[part]}*{count // part}"
    try:
        found = parse(words)
        return found if found.count == count else None
    except ConfigError:
        return None


def differing(config: RunConfig, words: tuple[str, ...]) -> list[str]:
    """Those of the overrides that say something else than the configuration does."""
    return [word for word in words if changed(config, (word,)) != config]


def changed(config: RunConfig, words: tuple[str, ...]) -> RunConfig:
    """The configuration with overrides of one key or of one section's key."""
    for word in words:
        key, _, text = word.partition("=")
        value = read_value(text, word)
        section, _, name = key.partition(".")
        if name:
            value = getattr(config, section).model_copy(update={name: value})
        config = config.model_copy(update={section: value})
    return config


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
