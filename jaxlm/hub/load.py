"""A Hugging Face folder straight into sharded arrays, tensor by tensor.

Tensors stay in the file, mapped, until a device's share of a leaf is filled from them: nothing is
ever in memory twice.
"""

import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxlm import families
from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError
from jaxlm.core.mesh import Layout
from jaxlm.core.tree import Params
from jaxlm.families import names
from jaxlm.families.family import Family
from jaxlm.families.names import Piece
from jaxlm.hub.fetch import is_remote, local
from jaxlm.hub.tensors import Tensors, open_tensors, set_cast
from jaxlm.models.axes import AXES
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import param_shapes
from jaxlm.text import files
from jaxlm.text.tokenizer import Tokenizer

ALIGNED = 64
"""Bytes at a multiple of which XLA wants arrays to begin."""
BLOCK = 256
"""Most of each axis that is copied at once: what is turned on the way stays in the cache."""
FLOATS = "float32, bfloat16 or float16"
COMPARED = 1 << 24
"""Elements compared at a time, where a file holds a tied head twice."""

Store = Callable[[str, tuple[int, ...], np.ndarray], dict[str, Any]]
"""What becomes of `leaf[at]`, given the leaf's name, `at` and it: parts of leaves by name."""
Slices = dict[tuple[int, ...], Piece]
"""The pieces of one leaf, by their places in it."""


@dataclass(frozen=True)
class Folder:
    """A Hugging Face folder whose configuration is understood; no tensor is read yet."""

    path: Path
    config: dict[str, Any]
    """config.json as it is."""
    generation: dict[str, Any]
    """generation_config.json as it is; empty when there is none."""
    family: Family
    spec: ModelSpec
    notes: tuple[str, ...]
    """A line for each thing in it that is not followed, and on purpose."""


def is_folder(path: str | Path) -> bool:
    """Whether `path` looks like a Hugging Face folder, or names one of the Hub."""
    return is_remote(path) or (Path(path) / "config.json").is_file()


def open_folder(path: str | Path) -> Folder:
    """Read config.json, of hf://ORG/NAME@REVISION too, which is downloaded whole.

    Raises CheckpointError for what is missing, wrong or not supported.
    """
    path = local(path)
    where = path / "config.json"
    try:
        config = json.loads(where.read_bytes())
    except OSError as error:
        raise CheckpointError(str(where), f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(where), f"not JSON: {error}; download it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(str(where), "an object is meant, with keys such as model_type")
    family = families.find(config, str(where))
    spec = family.spec(config, str(where))
    generation = files.read_json(path / files.GENERATION)
    return Folder(path, config, generation, family, spec, tuple(families.notes(config)))


def check_tokenizer(folder: Folder, tokenizer: Tokenizer) -> None:
    """Raise CheckpointError for ids beyond the embedding's rows, which JAX would clamp."""
    if tokenizer.vocab > folder.spec.vocab:
        what = f"its tokenizer has {tokenizer.vocab} ids, its model {folder.spec.vocab}"
        raise CheckpointError(str(folder.path), what)


def load_params(
    folder: Folder,
    layout: Layout,
    dtype: DTypeLike | None = None,
    store: Store | None = None,
) -> Params:
    """Every parameter, on the mesh of `layout`; in the file's own types unless `dtype` says other.

    store: what becomes of each slice, instead: one at a time is there as it is in the file. Raises
    CheckpointError naming tensors that are missing, that no parameter takes, that have another
    shape than config.json gives them, or a type that is not one of weights.
    """
    tensors = open_tensors(folder.path)
    shapes = tree.flatten(param_shapes(folder.spec, layout, jnp.float32))
    pieces, files = matched(folder, tensors, {name: leaf.shape for name, leaf in shapes.items()})
    _check_copies(folder, tensors, files, pieces)
    leaves: dict[str, Slices] = {name: {} for name in shapes}
    for piece in pieces:
        leaves[piece.leaf][piece.at] = piece
    if store:
        made: dict[str, jax.Array] = {}
        for name, slices in leaves.items():
            parts = _stored(name, shapes[name], slices, tensors, files, store)
            lies = tree.flatten(layout.shardings(tree.unflatten(parts), AXES))
            for leaf, part in parts.items():
                made[leaf] = jax.make_array_from_callback(part.shape, lies[leaf], part.__getitem__)
        return tree.unflatten(made)
    return tree.unflatten(
        {
            name: _leaf(name, shapes[name], slices, tensors, files, dtype)
            for name, slices in leaves.items()
        }
    )


def held(folder: Folder, spec: ModelSpec, leaves: Mapping[str, Any]) -> dict[str, Slices]:
    """The slices of those among `leaves` of `spec`, arrays or shapes by name, that the file holds
    whole, though its own configuration may not ask for them.
    """
    tensors, family = open_tensors(folder.path), folder.family
    files = names.in_file(tensors, family.prefix, family.renamed)
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    found: dict[str, Slices] = {name: {} for name in shapes}
    for piece in names.expand(family.table(spec), shapes, spec.vocab):
        there = tensors.table.get(files.get(piece.name, ""))
        if there is None or there.shape != names.their_shape(piece):
            found.pop(piece.leaf, None)
        elif piece.leaf in found:
            found[piece.leaf][piece.at] = piece
    return {name: slices for name, slices in found.items() if slices}


def load_held(folder: Folder, spec: ModelSpec, leaves: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Those that `held` finds, as the arrays or shapes among `leaves` lie and in their types."""
    tensors, family = open_tensors(folder.path), folder.family
    files = names.in_file(tensors, family.prefix, family.renamed)
    return {
        name: _leaf(name, leaves[name], slices, tensors, files, leaves[name].dtype)
        for name, slices in held(folder, spec, leaves).items()
    }


def matched(
    folder: Folder, tensors: Tensors, shapes: dict[str, tuple[int, ...]]
) -> tuple[list[Piece], dict[str, str]]:
    """(the slices of every leaf, the table's name of a tensor -> the file's).

    Only headers are read. Raises CheckpointError when a leaf stays empty, or a tensor is left over,
    has another shape or a type that is not one of weights.
    """
    family, where = folder.family, str(folder.path)
    pieces = names.expand(family.table(folder.spec), shapes, folder.spec.vocab)
    files = names.in_file(tensors, family.prefix, family.renamed)
    copies, needed = family.copied(folder.spec, shapes), names.tensors(pieces)
    for a, b in family.copies.items():  # a file may have left out either of both
        for name, other in ((a, b), (b, a)):
            if name not in files and other in files and name in needed:
                files[name] = files[other]
    if empty := names.unfilled(pieces, shapes):
        raise CheckpointError(where, f"{empty[0]} has no tensor in {family.model_type}")
    if lost := names.missing(pieces, files):
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise CheckpointError(
            where, f"has no tensor {lost[0]}{more}, which config.json asks for; download it whole"
        )
    if left := names.unused(pieces, files, family.ignored, copies):
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise CheckpointError(
            where,
            f"{files[left[0]]}{more} is no part of the model that config.json describes; "
            "correct config.json or remove the tensor",
        )
    for name, parts in needed.items():
        stored, wanted = tensors.table[files[name]], names.their_shape(parts[0])
        if stored.shape != wanted:
            what = f"has the shape {list(stored.shape)}; the configuration makes it {list(wanted)}"
            raise CheckpointError(f"{where}: {files[name]}", what)
        if not jnp.issubdtype(stored.dtype, jnp.floating):
            what = f"holds {stored.dtype}, which is no type of weights; store it as {FLOATS}"
            raise CheckpointError(f"{where}: {files[name]}", what)
    return pieces, files


def _check_copies(
    folder: Folder, tensors: Tensors, files: dict[str, str], pieces: list[Piece]
) -> None:
    """Raise CheckpointError where a file holds a tied tensor that is not what it is tied to."""
    shapes = {piece.leaf: () for piece in pieces}
    for copy, original in folder.family.copied(folder.spec, shapes).items():
        if copy in files and not _same(tensors[files[copy]], tensors[files[original]]):
            raise CheckpointError(
                str(folder.path),
                f"{copy} differs from {original}, which it is tied to; if it is a head of its own, "
                "set tie_word_embeddings to false",
            )


def _leaf(
    name: str,
    want: jax.ShapeDtypeStruct,
    slices: Slices,
    tensors: Tensors,
    files: dict[str, str],
    dtype: DTypeLike | None,
) -> jax.Array:
    """One leaf, device by device; devices that hold the same share one buffer."""
    sharding: Any = want.sharding
    depth = len(next(iter(slices)))
    kind = _kind(slices, tensors, files)
    if dtype is not None:
        kind = jnp.dtype(dtype)
    elif kind == np.float64:
        what = "holds float64, which is rounded only where it is asked for"
        first = files[next(iter(slices.values())).name]
        raise CheckpointError(first, f"{what}; run jaxlm convert import with --dtype float32")
    made: dict[Any, np.ndarray] = {}
    parts = []
    for device, index in sharding.addressable_devices_indices_map(want.shape).items():
        spans = [one.indices(size)[:2] for one, size in zip(index, want.shape, strict=True)]
        key = tuple(spans)
        if key not in made:
            made[key] = share = _aligned([stop - start for start, stop in spans], kind)
            if len(slices) < math.prod(want.shape[:depth]):  # layers that have no such norm
                share[...] = 0 if name.endswith("bias") else 1
            inner = tuple(slice(*span) for span in spans[depth:])
            for at, piece in slices.items():
                if all(start <= i < stop for i, (start, stop) in zip(at, spans, strict=False)):
                    to = tuple(i - start for i, (start, _) in zip(at, spans, strict=False))
                    _fill(share[(*to, ...)], piece, tensors[files[piece.name]], inner)
        parts.append(jax.device_put(made[key], device))
    return jax.make_array_from_single_device_arrays(want.shape, sharding, parts)


def _stored(
    name: str,
    want: jax.ShapeDtypeStruct,
    slices: Slices,
    tensors: Tensors,
    files: dict[str, str],
    store: Store,
) -> dict[str, np.ndarray]:
    """What `store` makes of one leaf, slice by slice."""
    depth = len(next(iter(slices)))
    kind = _kind(slices, tensors, files)
    one = _aligned(want.shape[depth:], kind if kind != np.float64 else np.dtype(np.float32))
    every = tuple(slice(0, size) for size in one.shape)
    made: dict[str, np.ndarray] = {}
    for at in itertools.product(*map(range, want.shape[:depth])):
        if piece := slices.get(at):
            _fill(one, piece, tensors[files[piece.name]], every)
        else:  # layers that have no such norm
            one[...] = 0 if name.endswith("bias") else 1
        for leaf, part in store(name, at, one).items():
            if part is one and not depth:
                made[leaf] = part
                continue
            if leaf not in made:
                made[leaf] = _aligned((*want.shape[:depth], *part.shape), part.dtype)
            made[leaf][at] = part
    return made


def _kind(slices: Slices, tensors: Tensors, files: dict[str, str]) -> np.dtype:
    """The type that holds every slice of a leaf: layers in several types lose nothing."""
    stored = {tensors.table[files[piece.name]].dtype for piece in slices.values()}
    return functools.reduce(jnp.promote_types, stored)


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Memory that a device of the CPU takes as its own: XLA copies what is not aligned."""
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + ALIGNED, np.uint8)
    start = -raw.ctypes.data % ALIGNED
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def _fill(out: np.ndarray, piece: Piece, tensor: np.ndarray, index: tuple[slice, ...]) -> None:
    """Set `out` to `index` of the piece, and to zero what only pads the vocabulary.

    Raises CheckpointError as `set_cast` does.
    """
    known = piece.parts[piece.part]
    inside = tuple(
        slice(min(one.start, size), min(one.stop, size))
        for one, size in zip(index, known, strict=True)
    )
    part = names.read(piece, tensor, known, inside)
    if part.shape != out.shape:
        out[...] = 0
    for corner in itertools.product(*(range(0, size, BLOCK) for size in part.shape)):
        block = tuple(
            slice(i, min(i + BLOCK, size)) for i, size in zip(corner, part.shape, strict=True)
        )
        set_cast(out[block], part[block], piece.name)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    rows = max(1, COMPARED // max(1, int(np.prod(a.shape[1:]))))
    bits = (x.view(f"u{x.dtype.itemsize}") for x in (a, b))
    first, second = bits
    return all(
        np.array_equal(first[at : at + rows], second[at : at + rows])
        for at in range(0, a.shape[0], rows)
    )
