"""The device mesh, and the table from logical axes to mesh axes.

Meshes are Auto: the compiler propagates shardings, and `Layout.constrain` pins the few that it must
not choose. More axes (sequence, stage) are a name in sizes.AXES and a row in RULES.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.core import tree
from jaxlm.core.platform import target
from jaxlm.core.sizes import AXES, fit
from jaxlm.core.slices import Slices, arrange

RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("batch", ("data", "fsdp", "expert")),
    ("embed", ("fsdp", "expert")),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("vocab", ("tensor",)),
    ("layers", ()),
    ("length", ()),
    ("head_dim", ()),
    ("rank", ()),
    ("experts", ("expert",)),
    ("norm", ()),
    ("whole", ()),
)
"""Logical axis -> the mesh axes it is split over, outermost first."""

AxesTable = Sequence[tuple[str, tuple[str, ...]]]


def make_mesh(
    sizes: dict[str, int], devices: Sequence[Any] | None = None, slices: Slices | None = None
) -> Mesh:
    """A mesh over `devices` (all of them by default) with one size per name in AXES, as `fit`.

    slices: the same devices, by what a fast network joins (see `slices.arrange`).
    """
    if slices is None:
        slices = [list(jax.devices() if devices is None else devices)]
    shape = fit(sizes, sum(map(len, slices)))
    return Mesh(arrange(shape, slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_mesh(sizes: dict[str, int], count: int) -> AbstractMesh:
    """The mesh that `make_mesh` makes of `count` devices, without any."""
    return AbstractMesh(tuple(fit(sizes, count)), AXES, (AxisType.Auto,) * len(AXES))


@dataclass(frozen=True)
class Layout:
    """Where arrays lie: logical axis names to mesh axes. An unknown name or a wrong rank raises."""

    mesh: Mesh | AbstractMesh
    """Abstract where nothing is computed: shapes of devices that are not here."""
    rules: tuple[tuple[str, tuple[str, ...]], ...] = RULES

    @property
    def platform(self) -> str:
        """Of the mesh's devices: cpu, gpu or tpu."""
        mesh = self.mesh
        return target() if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].platform

    def size(self, axis: str) -> int:
        """Number of shards of a logical axis."""
        return int(np.prod([self.mesh.shape[name] for name in dict(self.rules)[axis]], dtype=int))

    def spec(self, axes: Sequence[Any]) -> P:
        """The PartitionSpec of an array whose dimensions carry these logical axes (None: whole)."""
        rules, taken, parts = dict(self.rules), set(), []
        for axis in axes:
            if axis is ...:
                parts.append(P.UNCONSTRAINED)
                continue
            if axis is not None and axis not in rules:
                raise ValueError(f"unknown logical axis {axis!r}; known are {', '.join(rules)}")
            names = () if axis is None else rules[axis]
            if taken & set(names):
                raise ValueError(f"axes {tuple(axes)} put two dimensions on one mesh axis")
            taken |= set(names)
            parts.append(names if len(names) > 1 else names[0] if names else None)
        return P(*parts)

    def sharding(self, axes: Sequence[str | None]) -> NamedSharding:
        """The sharding of an array with these logical axes; `()` is replicated."""
        return NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, *axes: Any) -> jax.Array:
        """Pin the sharding of an activation; the identity on one device.

        axes: per dimension a logical name, None (whole), or ... (the compiler's choice).
        """
        if len(axes) != x.ndim:
            raise ValueError(f"{len(axes)} axes {axes} for an array of shape {x.shape}")
        if self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(axes))

    def shardings(self, shapes: Any, table: AxesTable) -> Any:
        """Shardings of parameters, or of any tree whose paths end in a parameter's name.

        shapes: a tree of arrays or ShapeDtypeStructs. table: name suffix (a regular expression) ->
        logical axes; a name with `blocks/` has the axis `layers` before them. A leaf whose rank is
        another than its row's (Adafactor's rows and columns, counters) is replicated, and so is a
        dimension that does not divide; heads, mlp and vocab that do not are refused beforehand.
        """

        def one(name: str, leaf: Any) -> NamedSharding:
            axes = logical_axes(name, table)
            if axes is None or len(axes) != leaf.ndim:
                return self.sharding(())
            return NamedSharding(self.mesh, P(*self.split(axes, leaf.shape)))

        return tree.map_named(one, shapes)

    def split(self, axes: Sequence[str], shape: Sequence[int]) -> list[tuple[str, ...]]:
        """The mesh axes that each dimension of a parameter is split over: of its `shares` as many,
        outermost first, as divide it.
        """
        found = []
        for names, size in zip(shares(axes, self.rules), shape, strict=True):
            names = [name for name in names if self.mesh.shape[name] > 1]
            while size % math.prod(self.mesh.shape[name] for name in names):
                names.pop()
            found.append(tuple(names))
        return found

    def placed(self, shapes: Any, table: AxesTable) -> Any:
        """The same tree as ShapeDtypeStructs that carry their shardings."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.shardings(shapes, table),
        )


def shares(
    axes: Sequence[str], rules: Sequence[tuple[str, tuple[str, ...]]] = RULES
) -> list[tuple[str, ...]]:
    """The mesh axes that each dimension of a parameter may be split over: those of its logical
    axis, but for what a dimension before it has. Experts are split over `expert`, and the width of
    each over `fsdp`, while other kernels' width is split over both.
    """
    found: list[tuple[str, ...]] = []
    for axis in axes:
        taken = {name for names in found for name in names}
        found.append(tuple(name for name in dict(rules)[axis] if name not in taken))
    return found


def logical_axes(name: str, table: AxesTable) -> tuple[str, ...] | None:
    """The logical axes of the parameter that `name` ends in; None when no row matches."""
    rows = [axes for suffix, axes in table if re.search(rf"(^|/){suffix}$", name)]
    if len(rows) > 1:
        raise ValueError(f"{name} matches {len(rows)} rows of the axes table")
    if not rows:
        return None
    return ("layers", *rows[0]) if "blocks/" in name else rows[0]
