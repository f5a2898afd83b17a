"""Slots for adapters beside one base, reserved when it is loaded: what fits one never compiles.

The slots of a kernel are one adapter of n times their rank. `lora_scale` [layers, B, n] is what
each row of a batch multiplies each slot's product by, 0 where it does not take it: nothing is
gathered, and a row pays for the others' adapters in the narrow products alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError, ConfigError
from jaxlm.core.mesh import Layout
from jaxlm.core.tree import Params
from jaxlm.inference.adapters import Adapter
from jaxlm.models import lora
from jaxlm.models.axes import AXES

Choice = str | Sequence[str | None] | None
"""An adapter's name for every row, or one for each of which None is the base alone; None: the
adapter that was put in last."""


@dataclass(frozen=True)
class Slots:
    """Room for `n` adapters, of ranks up to `rank`, beside the kernels that `targets` name.

    targets: attention, mlp, all-linear, or regular expressions of kernels' names.
    """

    rank: int
    targets: str | Sequence[str]
    n: int = 1


@dataclass(frozen=True)
class Held:
    """What lies in the slots of a model."""

    slots: Slots
    places: dict[str, int]
    """The slot of each adapter, by name, in the order in which they were put in."""
    scales: dict[str, np.ndarray]
    """By kernel, [layers, n]: what each slot's product is multiplied by."""
    shapes: dict[str, jax.ShapeDtypeStruct]
    """Of the leaves of one slot."""
    insert: Callable[[Params, Params, np.int32], Params]
    """(leaves of all slots, of one, its first column) -> of all; compiled already."""


def reserve(base: Params, slots: Slots, layout: Layout) -> tuple[Params, Held]:
    """`base` with empty slots. Raises ConfigError for targets that match no kernel."""
    if slots.rank < 1 or slots.n < 1:
        raise ConfigError("Slots", f"rank={slots.rank}, n={slots.n}: both are at least 1")
    targets = [slots.targets] if isinstance(slots.targets, str) else slots.targets
    leaves = tree.flatten(base)
    kernels = {name: leaves[name] for name in lora.select(base, targets, "Slots.targets")}
    if experts := [name for name in kernels if "/experts/" in name]:
        raise ConfigError("Slots.targets", f"{experts[0]} has no slots; write targets='attention'")
    every = _shapes(kernels, slots.rank * slots.n, layout)
    one = _shapes(kernels, slots.rank, layout)

    def inserted(every: Params, one: Params, first: jax.Array) -> Params:
        put = jax.lax.dynamic_update_slice_in_dim
        return {
            name: put(leaf, one[name], first, _axis(name, leaf)) for name, leaf in every.items()
        }

    shardings = {name: leaf.sharding for name, leaf in every.items()}
    insert = jax.jit(inserted, out_shardings=shardings).lower(every, one, np.int32(0)).compile()
    zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in every.items()}
    scales = {
        name.removesuffix("kernel"): np.zeros((kernel.shape[0], slots.n), np.float32)
        for name, kernel in kernels.items()
    }
    held = Held(slots, {}, scales, one, insert)
    params = tree.unflatten(leaves | jax.device_put(zeros, shardings))
    return choose(params, held, None, 1, layout), held


def put(
    params: Params, held: Held, name: str, adapter: Adapter, layout: Layout
) -> tuple[Params, Held]:
    """`params` with an adapter in the slot of its name, else in a free one, else in the oldest's.

    Raises CheckpointError for one that does not fit: a larger rank, other targets, or more than an
    adapter beside each kernel.
    """
    _check_fits(adapter, held)
    leaves = adapter.leaves
    places, n = dict(held.places), held.slots.n
    if name not in places and len(places) == n:
        places.pop(next(iter(places)))
    slot = places.pop(name, None)
    if slot is None:
        slot = min(set(range(n)) - set(places.values()))
    places[name] = slot
    one = {leaf: _widened(leaf, leaves.get(leaf), shape) for leaf, shape in held.shapes.items()}
    one = jax.device_put(one, {leaf: shape.sharding for leaf, shape in held.shapes.items()})
    flat = tree.flatten(params)
    every = {leaf: flat[leaf] for leaf in held.shapes}
    made = held.insert(every, one, np.int32(slot * held.slots.rank))
    scales = {beside: its.copy() for beside, its in held.scales.items()}
    for beside, its in scales.items():
        its[:, slot] = leaves.get(f"{beside}lora_scale", 0)
    held = replace(held, places=places, scales=scales)
    return choose(tree.unflatten(flat | made), held, None, 1, layout), held


def choose(
    params: Params, held: Held, choice: Choice, rows: int, layout: Layout, fill: int = 0
) -> Params:
    """`params` for a batch of `rows` that take the adapters of `choice`, and `fill` that take none.

    Raises ConfigError for a name that is in no slot, and for more or fewer names than rows.
    """
    if choice is None:
        choice = next(reversed(held.places), None)
    given = [choice] * rows if choice is None or isinstance(choice, str) else list(choice)
    if len(given) != rows:
        raise ConfigError("adapter", f"has {len(given)} names for {rows} rows; give one for each")
    share = np.zeros((rows + fill, held.slots.n), np.float32)
    for row, name in enumerate(given):
        if name is None:
            continue
        if name not in held.places:
            there = ", ".join(map(repr, held.places)) or "none"
            raise ConfigError("adapter", f"{name!r} is in no slot; there is {there}")
        share[row, held.places[name]] = 1
    made = {f"{beside}lora_scale": its[:, None] * share for beside, its in held.scales.items()}
    placed = jax.device_put(made, layout.sharding((None, "batch" if rows + fill > 1 else None)))
    return tree.unflatten(tree.flatten(params) | placed)


def repeated(params: Params, times: int) -> Params:
    """`params` for a batch in which each row stands so many times in turn."""

    def one(name: str, leaf: jax.Array) -> jax.Array:
        chosen = name.endswith("lora_scale") and leaf.ndim == 3  # [layers, B, n]
        return jnp.repeat(leaf, times, axis=1) if chosen else leaf

    return tree.map_named(one, params)


def _shapes(
    kernels: dict[str, jax.Array], rank: int, layout: Layout
) -> dict[str, jax.ShapeDtypeStruct]:
    """The leaves of an adapter beside each kernel, on the mesh."""
    made = {}
    for name, kernel in kernels.items():
        beside, (inputs, outputs) = name.removesuffix("kernel"), lora.sides(name, kernel.shape)
        for part, size in (("lora_a", (*inputs, rank)), ("lora_b", (rank, *outputs))):
            made[beside + part] = jax.ShapeDtypeStruct((kernel.shape[0], *size), jnp.float32)
    return tree.flatten(layout.placed(tree.unflatten(made), AXES))


def _axis(name: str, leaf: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Where A [layers, *in, R] and B [layers, R, *out] have their ranks."""
    return leaf.ndim - 1 if name.endswith("lora_a") else 1


def _widened(name: str, leaf: np.ndarray | None, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """A leaf of an adapter with the rank of a slot, the rest 0."""
    if leaf is not None and leaf.shape == shape.shape:
        return leaf
    made = np.zeros(shape.shape, shape.dtype)
    if leaf is not None:
        axis = _axis(name, shape)
        made[(slice(None),) * axis + (slice(leaf.shape[axis]),)] = leaf
    return made


def _check_fits(adapter: Adapter, held: Held) -> None:
    where = adapter.name
    for name, leaf in adapter.leaves.items():
        beside, _, part = name.rpartition("lora_")
        if not beside:
            what = f"has a {name} of its own, which no slot holds; load the base without slots"
            raise CheckpointError(where, what)
        if part == "m":
            what = "is of DoRA, which no slot holds; load the base without slots"
            raise CheckpointError(where, what)
        if beside not in held.scales:
            what = f"adapts {beside}kernel, which has no slot; add it to Slots.targets"
            raise CheckpointError(where, what)
        if part == "a" and leaf.shape[-1] > held.slots.rank:
            what = f"has rank {leaf.shape[-1]}, a slot {held.slots.rank}; reserve Slots of that"
            raise CheckpointError(where, what)
