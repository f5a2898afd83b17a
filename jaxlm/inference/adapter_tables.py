"""What adapters are made of, and how two differ: a row for each kind of layer."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.core import tree, words
from jaxlm.core.errors import CheckpointError
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.hub.adapter import BASE, ENDS, read_config, read_tensors, scale_of, split_names
from jaxlm.inference import adapters
from jaxlm.inference.run import read as read_model
from jaxlm.models import lora

HEAD = ("layer", "layers", "rank", "alpha", "parameters", "norm of the product")


class Module(NamedTuple):
    """The adapter of one kernel."""

    a: np.ndarray
    """[in, R]"""
    b: np.ndarray
    """[R, out]"""
    scale: float
    m: np.ndarray | None
    """[out], DoRA's magnitudes; None: it is not of DoRA."""
    kernel: float
    """The norm of what it adapts; NaN: not known."""

    @property
    def size(self) -> int:
        """Its parameters."""
        return self.a.size + self.b.size + (0 if self.m is None else self.m.size)


class Adapter(NamedTuple):
    """An adapter by the names of what it adapts: in its file, or of ours where its base is read."""

    modules: dict[str, Module]
    saved: dict[str, np.ndarray]
    """What replaces parameters of the base."""
    name: str
    """Of the base, as the file has it."""
    digest: str | None
    """Of the base, if it was made here."""
    nbytes: int


def read(path: str, base: str | None = None, *, force: bool = False) -> Adapter:
    """Raises CheckpointError for what is no adapter, and as `adapters.read` does with a base."""
    config = read_config(Path(path))
    tensors, told = read_tensors(path)
    modules, saved = _of_base(path, base, force) if base else _of_file(path, tensors, config)
    name = config.get("base_model_name_or_path") or "a base that it does not name"
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    return Adapter(modules, saved, str(name), told.get(BASE), nbytes)


def _of_file(
    path: str, tensors: dict[str, np.ndarray], config: dict
) -> tuple[dict[str, Module], dict[str, np.ndarray]]:
    parts: dict[str, dict[str, np.ndarray]] = {}
    saved = {}
    for name, (own, end) in split_names(path, tensors).items():
        if end in ENDS.values():
            parts.setdefault(own.removesuffix(".weight"), {})[end] = tensors[name]
        else:
            saved[own.removesuffix(".weight") + end if end else own] = tensors[name]
    modules = {}
    for module, its in parts.items():
        if ENDS["a"] not in its or ENDS["b"] not in its:
            raise CheckpointError(path, f"{module} has only one of lora_A and lora_B")
        a, b = its[ENDS["a"]].T, its[ENDS["b"]].T
        if a.shape[1] != b.shape[0]:
            raise CheckpointError(path, f"{module}: ranks {a.shape[1]} and {b.shape[0]} differ")
        scale, m = scale_of(module, a.shape[1], config), its.get(ENDS["m"])
        modules[module] = Module(a, b, scale, m, math.nan)
    return modules, saved


def _of_base(path: str, base: str, force: bool) -> tuple[dict[str, Module], dict[str, np.ndarray]]:
    opened = read_model(base, Layout(make_mesh({}, jax.devices()[:1])))
    params = lora.merge(opened.params)
    leaves = adapters.read(
        {path: 1.0},
        params,
        opened.spec,
        adapters.family_of(opened.config, opened.spec),
        digest=lambda: adapters.base_digest(params, opened.spec),
        force=force,
    )
    kernels, modules = tree.flatten(params), {}
    for name in [name for name in leaves if name.endswith("/lora_a")]:
        beside = name.removesuffix("lora_a")
        own, scale = leaves.get(f"{beside}lora_m"), leaves[f"{beside}lora_scale"]
        for at in np.ndindex(scale.shape):  # a layer, or an expert of a layer
            a, b = leaves[name][at], leaves[f"{beside}lora_b"][at]
            module = beside.replace("blocks/", f"blocks/{at[0]}/").rstrip("/")
            module = module.replace("experts/", f"experts/{at[-1]}/")
            modules[module] = Module(
                a.reshape(-1, a.shape[-1]),
                b.reshape(a.shape[-1], -1),
                float(scale[at]),
                None if own is None else own[at],
                float(np.linalg.norm(np.asarray(kernels[f"{beside}kernel"][at], np.float64))),
            )
    return modules, {name: x for name, x in leaves.items() if "/lora_" not in name}


def show(path: str, base: str | None = None, *, force: bool = False) -> str:
    """What an adapter changes, and with its base how much of that it is."""
    found = read(path, base, force=force)
    head = [*HEAD] + (["of the kernel's"] if base else [])
    rows = []
    for kind, modules in _kinds(found.modules).items():
        norm = _norm(_squares(modules))
        row = [
            kind,
            f"{len(modules)}",
            _span(module.a.shape[1] for module in modules),
            _span(module.scale * module.a.shape[1] for module in modules),
            words.count(sum(module.size for module in modules)),
            f"{norm:.3g}",
        ]
        share = norm / max(_norm(module.kernel**2 for module in modules), 1e-30)
        rows.append(row + ([f"{100 * share:.3g}%"] if base else []))
    size = sum(m.size for m in found.modules.values()) + sum(x.size for x in found.saved.values())
    kind = "DoRA" if any(module.m is not None for module in found.modules.values()) else "LoRA"
    lines = [
        f"{path}: {kind} on {found.name}",
        f"base {found.digest or 'of no digest: any is taken'}",
        "",
        *_columns([head, *rows]),
        *(f"{name}  {'x'.join(map(str, x.shape))}, saved whole" for name, x in found.saved.items()),
        "",
        f"{words.count(size)} parameters, {words.size(found.nbytes)}",
    ]
    return "\n".join(lines)


def diff(first: str, second: str) -> str:
    """A row for each kind of layer, and each tensor saved whole, in which two adapters differ."""
    a, b = read(first), read(second)
    mine, theirs = _kinds(a.modules), _kinds(b.modules)
    rows = []
    for kind in sorted(mine.keys() | theirs.keys()):
        one, other = mine.get(kind), theirs.get(kind)
        if one is None or other is None or len(one) != len(other):
            rows.append([kind, f"{len(one or ())} layers -> {len(other or ())}", ""])
            continue
        ranks = [_span(m.a.shape[1] for m in its) for its in (one, other)]
        apart = _apart(one, other)
        if apart or ranks[0] != ranks[1]:
            changed = "rank " + (ranks[0] if ranks[0] == ranks[1] else " -> ".join(ranks))
            rows.append([kind, changed, f"products {100 * apart:.3g}% apart"])
        if any(not _same(m.m, n.m) for m, n in zip(one, other, strict=True)):
            rows.append([kind, "DoRA's magnitudes differ", ""])
    for name in sorted(a.saved.keys() | b.saved.keys()):
        x, y = a.saved.get(name), b.saved.get(name)
        if x is None or y is None or x.shape != y.shape:
            rows.append([name, "saved whole in one, or of two shapes", ""])
        elif not np.array_equal(x, y):
            most = np.abs(x.astype(np.float64) - y.astype(np.float64)).max()
            rows.append([name, "saved whole", f"up to {most:.3g} apart"])
    if a.digest != b.digest:
        rows.append(["base", f"{a.digest or 'none'} -> {b.digest or 'none'}", ""])
    return "\n".join(_columns(rows)) or "equal"


def _apart(one: list[Module], other: list[Module]) -> float:
    """How far the products of two adapters are apart, as a share of the larger; 0 within rounding
    of float64.
    """
    square = 0.0
    for m, n in zip(one, other, strict=True):
        if m.a.shape[0] != n.a.shape[0] or m.b.shape[1] != n.b.shape[1]:
            return math.inf
        a = np.concatenate([m.a, n.a], 1)
        b = np.concatenate([m.scale * m.b, -n.scale * n.b], 0)
        square += _square(a, b)
    share = math.sqrt(square) / max(_norm(_squares(one)), _norm(_squares(other)), 1e-30)
    return share if share > 1e-12 else 0.0


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _square(a: np.ndarray, b: np.ndarray) -> float:
    """The squared norm of a [in, R] times b [R, out], which is never made: of the two triangles."""
    left: Any = np.linalg.qr(a.astype(np.float64), mode="r")
    right: Any = np.linalg.qr(b.T.astype(np.float64), mode="r")
    return float(np.square(left @ right.T).sum())


def _squares(modules: Iterable[Module]) -> Iterable[float]:
    return (module.scale**2 * _square(module.a, module.b) for module in modules)


def _norm(squares: Iterable[float]) -> float:
    return math.sqrt(sum(squares))


def _kinds(modules: dict[str, Module]) -> dict[str, list[Module]]:
    """The modules of all layers under one name, with {} for the layer."""
    found: dict[str, list[Module]] = {}
    for name in sorted(modules, key=lambda name: [int(i) for i in re.findall(r"\d+", name)]):
        kind = re.sub(r"(?<=[./])\d+(?=[./])", "{}", name)
        found.setdefault(kind, []).append(modules[name])
    return dict(sorted(found.items()))


def _span(values: Iterable[float]) -> str:
    """All of them if they are one, else the least and the most."""
    every = sorted({f"{value:.4g}" for value in values}, key=float)
    return every[0] if len(every) == 1 else f"{every[0]} to {every[-1]}"


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
