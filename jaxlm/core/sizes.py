"""How many devices each axis of a mesh has, and whether slices and a batch split evenly. No jax."""

import itertools
import math
from collections.abc import Sequence

from jaxlm.core.errors import ConfigError

AXES = ("data", "fsdp", "expert", "tensor")
"""Outermost first: what talks least is farthest apart."""


def fit(sizes: dict[str, int], count: int) -> tuple[int, ...]:
    """The size of each axis of AXES over `count` devices, without touching one.

    One size may be -1: what is left. Raises ConfigError when the sizes do not give the number of
    devices, naming the nearest that do.
    """
    if unknown := [axis for axis in sizes if axis not in AXES]:
        raise ConfigError("mesh", f"no axis is called {unknown[0]!r}; use {', '.join(AXES)}")
    shape = [sizes.get(axis, 1) for axis in AXES]
    if 0 in shape or shape.count(-1) > 1:
        raise ConfigError("mesh", f"{sizes}: sizes are positive, and one of them may be -1")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape and count % known == 0:
        shape[shape.index(-1)] = count // known
    if math.prod(shape) != count:
        given = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
        each = zip(AXES, shape, nearest(shape, count), strict=True)
        use = " ".join(f"mesh.{a}={n}" for a, size, n in each if a == "fsdp" or (size, n) != (1, 1))
        raise ConfigError("mesh", f"{given} does not give {count} devices; use {use}")
    return tuple(shape)


def nearest(shape: Sequence[int], count: int) -> tuple[int, ...]:
    """The sizes that give `count` devices and are nearest to those asked for.

    Near is by how many times larger or smaller an axis is. `fsdp` gives way before `data`, and
    these before the axes that split a layer, whose sizes a model allows or not; -1 always does.
    """
    cost = {"fsdp": 0.25, "data": 0.5}

    def far(found: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        each = zip(AXES, shape, found, strict=True)
        steps = [cost.get(a, 1) * abs(math.log(n / size)) for a, size, n in each if size > 0]
        return round(sum(steps), 9), found

    return min(_factors(count, len(shape)), key=far)


def _factors(count: int, parts: int) -> list[tuple[int, ...]]:
    """All ways to write `count` as a product of so many numbers."""
    if parts == 1:
        return [(count,)]
    fits = [n for n in range(1, count + 1) if count % n == 0]
    return [(n, *rest) for n in fits for rest in _factors(count // n, parts - 1)]


def cubes(side: int, most: Sequence[int]) -> list[str]:
    """The toruses of TPUs that are cubes of that side put together, up to the sides `most`: each
    with the shorter sides first, and small ones before large ones.
    """
    ranges = [range(side, each + 1, side) for each in most]
    found = [sides for sides in itertools.product(*ranges) if list(sides) == sorted(sides)]
    found.sort(key=lambda sides: (math.prod(sides), sides))
    return ["x".join(map(str, sides)) for sides in found]


def check_slices(count: int, devices: int, own: int = 1) -> None:
    """Raise ConfigError, naming numbers that would do, where `mesh.slices` does not cut so many
    devices into equal groups, each within one of their `own` toruses.
    """
    if not count or (devices % count == 0 and count % own == 0):
        return
    what = f"{count} does not divide {devices} devices"
    if devices % count == 0:
        what = f"{count} does not split each of {own} TPU slices into groups"
    fits = [n for n in range(own, devices + 1, own) if devices % n == 0]
    near = [n for n in fits if n < count][-1:] + [n for n in fits if n > count][:1]
    raise ConfigError("mesh.slices", f"{what}; use {' or '.join(map(str, near))}")


def check_batch(batch: int, microbatches: int, shards: int) -> None:
    """Raise ConfigError, naming batches that would fit, when rows do not split over the devices."""
    unit = shards * microbatches
    if batch % unit == 0:
        return
    over = f"{shards} devices (data x fsdp x expert)"
    if microbatches > 1:
        over += f" x microbatches={microbatches}"
    lower, higher = batch // unit * unit, (batch // unit + 1) * unit
    fits = f"{lower} or {higher}" if lower else f"{higher}"
    if batch % shards == 0:  # fewer parts change no update
        parts = [n for n in range(1, microbatches) if batch // shards % n == 0]
        fits = f"microbatches={parts[-1]}, or batch={higher}"
    raise ConfigError("batch", f"{batch} does not split over {over}; use {fits}")
