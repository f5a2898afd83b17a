"""What a model is made of, from its headers and configuration: no weight is read."""

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm import families
from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError
from jaxlm.core.mesh import Layout, logical_axes, make_mesh, shares
from jaxlm.families.names import Shape, Weight
from jaxlm.hub import load as folders
from jaxlm.hub.tensors import open_tensors
from jaxlm.inference import imported
from jaxlm.inference.origin import open_run, origin
from jaxlm.inference.run import shapes
from jaxlm.models.axes import AXES
from jaxlm.models.depth import joined
from jaxlm.models.quantize import numbers
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import param_shapes


class Row(NamedTuple):
    """One parameter. axes: of each dimension, with the mesh axes it is split over: embed:fsdp."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    nbytes: int
    theirs: tuple[str, ...]
    """Hugging Face's names, the layers and experts of each in braces: `h.{0..11}.ln_1.weight`."""

    @property
    def size(self) -> int:
        """Elements of the array."""
        return math.prod(self.shape)


class Contents(NamedTuple):
    """A model that was not loaded. family: its model_type, or why it has none."""

    kind: str
    family: str
    spec: ModelSpec
    rows: list[Row]
    labels: tuple[str, ...]
    """Names of a classifier's labels."""

    @property
    def parameters(self) -> int:
        """Numbers in all parameters, rows that pad the vocabulary included."""
        return sum(numbers(row.name, row) for row in self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters."""
        return sum(row.nbytes for row in self.rows)


def inspect(path: str | Path) -> Contents:
    """What the run, the import or the Hugging Face folder at `path` holds.

    Raises CheckpointError for what is none of them, and for a folder whose tensors are not those
    that its configuration asks for.
    """
    layout = Layout(make_mesh({}, jax.devices()[:1]))
    labels = origin(str(path)).labels.names
    if folders.is_folder(path):
        return _folder(folders.open_folder(path), layout, labels)
    if imported.is_imported(path):
        folder = imported.open_imported(path)
        leaves = tree.flatten(imported.shapes(path, folder, layout))
        rows = _rows(leaves, folder.family.table(folder.spec))
        return Contents("import", folder.family.model_type, folder.spec, rows, labels)
    run = open_run(path)
    found = jax.eval_shape(partial(joined, layout=layout), shapes(run.config, run.spec, layout))
    leaves = tree.flatten(found)
    try:
        began = imported.kept(path).is_file()
        family = imported.open_imported(path).family if began else families.fitting(run.spec)
    except CheckpointError as error:
        return Contents("run", f"none: {error.what}", run.spec, _rows(leaves, ()), labels)
    rows = _rows(leaves, family.table(run.spec))
    return Contents("run", family.model_type, run.spec, rows, labels)


def _folder(folder: folders.Folder, layout: Layout, labels: tuple[str, ...]) -> Contents:
    tensors = open_tensors(folder.path)
    leaves = tree.flatten(param_shapes(folder.spec, layout, jnp.float32))
    pieces, files = folders.matched(folder, tensors, {n: leaf.shape for n, leaf in leaves.items()})
    kinds = {piece.leaf: tensors.table[files[piece.name]].dtype for piece in pieces}
    stored = {name: jax.ShapeDtypeStruct(leaf.shape, kinds[name]) for name, leaf in leaves.items()}
    rows = _rows(stored, folder.family.table(folder.spec))
    kind = "Hugging Face folder"
    return Contents(kind, folder.family.model_type, folder.spec, rows, labels)


def _rows(leaves: dict[str, jax.ShapeDtypeStruct], weights: Iterable[Weight]) -> list[Row]:
    return [
        Row(
            name,
            tuple(leaf.shape),
            leaf.dtype.name,
            _axes(name),
            leaf.size * leaf.dtype.itemsize,
            tuple(_theirs(w, leaf.shape) for w in weights if name in w.leaves),
        )
        for name, leaf in leaves.items()
    ]


def _axes(name: str) -> tuple[str, ...]:
    axes = logical_axes(name, AXES) or ()
    each = zip(axes, shares(axes), strict=True)
    return tuple(":".join([axis, *filter(None, ["+".join(names)])]) for axis, names in each)


def _theirs(weight: Weight, shape: Shape) -> str:
    ends = shape[: weight.theirs.count("{}")]
    firsts = (weight.first, *[0] * len(ends))
    spans = (f"{{{first}..{end - 1}}}" for first, end in zip(firsts, ends, strict=False))
    return weight.theirs.format(*spans)


def table(found: Contents) -> str:
    """The parameters in columns, their sums below."""
    head = ("parameter", "shape", "dtype", "axes:mesh", "bytes", "in Hugging Face")
    lines: list[tuple[str, ...]] = [head]
    for row in found.rows:
        shape, axes = "x".join(map(str, row.shape)), " ".join(row.axes)
        theirs = " + ".join(row.theirs) or "-"
        lines.append((row.name, shape, row.dtype, axes, f"{row.nbytes:,}", theirs))
    lines.append(("all", f"{found.parameters:,}", "", "", f"{found.nbytes:,}", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(_cells(line, widths)).rstrip() for line in lines)


def _cells(line: tuple[str, ...], widths: list[int]) -> list[str]:
    """The bytes to the right, all else to the left."""
    at = line[4].rjust(widths[4])
    return [at if i == 4 else cell.ljust(widths[i]) for i, cell in enumerate(line)]
