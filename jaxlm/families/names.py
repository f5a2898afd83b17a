"""The grammar of a family's table: which Hugging Face tensor is which leaf, read both ways.

A pattern rearranges the axes of their tensor into ours, as einops writes it: `(h k) e -> e h k`.

    v           the vocabulary: padded in ours, not in theirs
    f| e        several leaves lie one after another along the axis before the bar
    (h s k) e -> s e h k        several leaves are interleaved: s counts them
    1 v -> v    theirs has an axis more

Everything read is a view of their array: nothing is copied but a slice that reaches into padding.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core.errors import CheckpointError

Shape = tuple[int, ...]
Index = tuple[slice, ...]


class Weight(NamedTuple):
    """A row of a family's table. In `theirs` the first {} is the layer, the second the expert."""

    ours: str | tuple[str, ...]
    """A leaf, or the leaves that one of their tensors holds together."""
    theirs: str
    pattern: str = ""
    """From their axes to those of one layer and one expert of ours; empty: the same."""
    first: int = 0
    """Of the layers that have it; those before it do not read their part of the leaf."""

    @property
    def leaves(self) -> tuple[str, ...]:
        """The leaves that it fills."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


def norm(ours: str, theirs: str, first: int = 0) -> tuple[Weight, ...]:
    """The rows of a norm with a scale and a bias."""
    parts = (("scale", "weight"), ("bias", "bias"))
    return tuple(Weight(f"{ours}/{a}", f"{theirs}.{b}", "", first) for a, b in parts)


class Piece(NamedTuple):
    """`leaf[at]`, which is their tensor `name` or a part of it."""

    leaf: str
    at: tuple[int, ...]
    """(), (layer,) or (layer, expert)."""
    name: str
    pattern: str
    parts: tuple[Shape, ...]
    """Shapes of the slices of every leaf in the tensor, the vocabulary without its padding."""
    part: int
    """Which of them is this one."""


class Factors(NamedTuple):
    """A kernel's piece as the pieces of its adapter. Parts of one tensor have one A, of `rank`."""

    a: Piece
    """[*in, R] of their [R, in]."""
    b: Piece
    """[R, *out] of their [out, R]."""
    outputs: Piece
    """[*out] of their [out]."""
    turned: bool
    """Whether their kernel lies as [in, out]."""


def expand(weights: Iterable[Weight], shapes: Mapping[str, Shape], vocab: int) -> list[Piece]:
    """Every slice of every leaf that the table names, in the table's order.

    shapes: of our leaves. A row of which no leaf is there is left out. Raises CheckpointError for a
    row of which only some are.
    """
    pieces = []
    for weight in weights:
        there = [leaf for leaf in weight.leaves if leaf in shapes]
        if not there:
            continue
        if absent := set(weight.leaves) - set(there):
            raise CheckpointError(weight.theirs, f"holds {min(absent)}, which the model lacks")
        depth = weight.theirs.count("{}")
        sizes = shapes[there[0]][:depth]
        parts = tuple(_known(weight.pattern, shapes[leaf][depth:], vocab) for leaf in there)
        for at in product(*map(range, sizes)):
            if at and at[0] < weight.first:
                continue
            name = weight.theirs.format(*at)
            pieces += [
                Piece(leaf, at, name, weight.pattern, parts, i) for i, leaf in enumerate(there)
            ]
    return pieces


def unfilled(pieces: Iterable[Piece], shapes: Mapping[str, Shape]) -> list[str]:
    """Leaves that the table does not name."""
    return sorted(set(shapes) - {piece.leaf for piece in pieces})


def missing(pieces: Iterable[Piece], names: Iterable[str]) -> list[str]:
    """Tensors that the leaves need and that are not among the file's names."""
    there = set(names)
    return [name for name in tensors(pieces) if name not in there]


def unused(
    pieces: Iterable[Piece], names: Iterable[str], ignored: Iterable[str], copied: Iterable[str]
) -> list[str]:
    """Names of a file that no leaf reads, no pattern of `ignored` finds and `copies` lacks."""
    used = {piece.name for piece in pieces} | set(copied)
    patterns = [re.compile(pattern) for pattern in ignored]
    left = [name for name in names if name not in used]
    return sorted(name for name in left if not any(p.search(name) for p in patterns))


def tied(weights: Iterable[Weight], shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Of a tied head: the name of their head's tensor -> of the tensor that it must equal.

    A classifier's is not tied.
    """
    theirs = {leaf: weight.theirs for weight in weights for leaf in weight.leaves}
    own = {"head/kernel", "head/labels/kernel"}
    if not own.isdisjoint(shapes) or "head/kernel" not in theirs:
        return {}
    return {theirs["head/kernel"]: theirs["embed/embedding"]}


def in_file(
    names: Iterable[str], prefix: str, renamed: Iterable[tuple[str, str]] = ()
) -> dict[str, str]:
    """The table's name of each name in a file: a bare network was saved without the prefix.

    renamed: (regular expression, replacement) of names that old versions gave.
    """
    every = list(names)
    bare = not any(name.startswith(prefix) for name in every)
    found = {}
    for name in every:
        now = prefix + name if bare else name
        for old, new in renamed:
            now = re.sub(old, new, now)
        found[now] = name
    return found


def tensors(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    """The pieces of each of their tensors, in its own order."""
    found: dict[str, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(piece.name, []).append(piece)
    return found


def their_shape(piece: Piece) -> Shape:
    """The shape that their tensor has."""
    return _whole_shape(piece.pattern, piece.parts)


@cache
def _whole_shape(pattern: str, parts: tuple[Shape, ...]) -> Shape:
    left, right, split = _parsed(pattern, len(parts[0]))
    shapes = [_axes_of(left, _sizes(right, part, len(parts))) for part in parts]
    return tuple(
        sum(shape[axis] for shape in shapes) if axis == split else size
        for axis, size in enumerate(shapes[0])
    )


def factors(piece: Piece, inputs: int, rank: int) -> Factors:
    """The pieces of a kernel's adapter; inputs: how many axes of one layer are the kernel's input.

    PEFT has [R, in] and [out, R] also where the kernel itself lies the other way round.
    """
    shape = piece.parts[piece.part]
    left, right, _ = _parsed(piece.pattern, len(shape))
    several = right[:1] == ["s"]
    axes = right[several:]
    into, out = axes[:inputs], axes[inputs:]
    # As written, with the bar after an axis that several leaves share.
    written = re.findall(r"\([^)]*\)\|?|\w+\|?", piece.pattern.split("->")[0]) or axes
    mine = next(i for i, group in enumerate(left) if set(group) <= set(into))
    theirs, count = written[1 - mine], "s " * several
    ends = tuple(part[inputs:] for part in piece.parts)
    return Factors(
        piece._replace(
            pattern=f"rank {written[mine]} -> {' '.join(into)} rank",
            parts=((*shape[:inputs], rank),),
            part=0,
        ),
        piece._replace(
            pattern=f"{theirs} rank -> {count}rank {' '.join(out)}",
            parts=tuple((rank, *end) for end in ends),
        ),
        piece._replace(pattern=f"{theirs} -> {count}{' '.join(out)}", parts=ends),
        mine == 0,
    )


def read(piece: Piece, tensor: Any, shape: Shape, index: Index | None = None) -> np.ndarray:
    """`leaf[at][index]` as a view of their tensor; a copy only where it reaches into padding.

    tensor: their array, memory-mapped or not; shape: of `leaf[at]`, padding included. Raises
    CheckpointError, with both shapes, for a tensor of another shape.
    """
    view = _view(piece, tensor)
    wanted = index or (slice(None),) * len(shape)
    spans = [one.indices(size)[:2] for one, size in zip(wanted, shape, strict=True)]
    inside = tuple(
        slice(min(start, n), min(stop, n))
        for (start, stop), n in zip(spans, view.shape, strict=True)
    )
    part = view[inside]
    sizes = tuple(stop - start for start, stop in spans)
    if part.shape == sizes:
        return part
    return np.pad(part, [(0, size - have) for size, have in zip(sizes, part.shape, strict=True)])


def write(pieces: Sequence[Piece], slices: Sequence[Any]) -> np.ndarray:
    """Their tensor, of its pieces in order and `leaf[at]` of each, padding included."""
    shape = their_shape(pieces[0])
    out = np.empty(shape, slices[0].dtype)
    for piece, one in zip(pieces, slices, strict=True):
        known = tuple(slice(0, n) for n in piece.parts[piece.part])
        _view(piece, out)[...] = np.asarray(one)[known]
    return out


def _view(piece: Piece, tensor: Any) -> np.ndarray:
    """The part of their tensor that is this piece, with our axes and without padding."""
    expected = their_shape(piece)
    if tuple(tensor.shape) != expected:
        what = f"has the shape {list(tensor.shape)}; the configuration makes it {list(expected)}"
        raise CheckpointError(piece.name, what)
    part = piece.parts[piece.part]
    left, right, split = _parsed(piece.pattern, len(part))
    if split is not None:
        lengths = [_axes_of(left, _sizes(right, p, 1))[split] for p in piece.parts]
        start = sum(lengths[: piece.part])
        tensor = tensor[(slice(None),) * split + (slice(start, start + lengths[piece.part]),)]
    sizes = _sizes(right, part, len(piece.parts))
    flat = [axis for group in left for axis in group if axis != "1"]
    view = tensor.reshape([sizes[axis] for axis in flat]).transpose([flat.index(a) for a in right])
    return view[piece.part] if right[:1] == ["s"] else view


def _known(pattern: str, shape: Shape, vocab: int) -> Shape:
    """The shape with the vocabulary's size where the pattern has its axis."""
    _, right, _ = _parsed(pattern, len(shape))
    axes = right[right[:1] == ["s"] :]
    return tuple(vocab if axis == "v" else size for axis, size in zip(axes, shape, strict=True))


@cache
def _parsed(pattern: str, rank: int) -> tuple[list[list[str]], list[str], int | None]:
    """(their axes, each the names that make it; our axes; which of theirs the parts split)."""
    if not pattern:
        pattern = " ".join(f"a{i}" for i in range(rank))
        pattern = f"{pattern} -> {pattern}"
    left, right = pattern.split("->")
    groups = re.findall(r"\(([^)]*)\)(\|?)|(\w+)(\|?)", left)
    bars = [bool(first or second) for _, first, _, second in groups]
    names = [(group or name).split() for group, _, name, _ in groups]
    return names, right.split(), bars.index(True) if any(bars) else None


def _sizes(right: list[str], part: Shape, parts: int) -> dict[str, int]:
    """The size of each named axis."""
    full = (parts, *part) if right[:1] == ["s"] else part
    return {"1": 1, **dict(zip(right, full, strict=True))}


def _axes_of(left: list[list[str]], sizes: dict[str, int]) -> Shape:
    return tuple(math.prod(sizes[axis] for axis in group) for group in left)
