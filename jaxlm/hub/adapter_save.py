"""Adapters written in PEFT's format, through a family's table."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError
from jaxlm.core.tree import Params
from jaxlm.families import names
from jaxlm.families.family import Family
from jaxlm.families.heads import LM, SEQUENCE, TOKENS, head_of
from jaxlm.families.names import Piece
from jaxlm.hub.adapter import (
    BASE,
    CONFIG,
    ENDS,
    PREFIX,
    QUANTIZED,
    ROWS,
    STEM,
    column_norms,
    low_rank,
    stem_of,
)
from jaxlm.hub.save import whole
from jaxlm.hub.shards import Lazy, write_tensors
from jaxlm.models import lora
from jaxlm.models.spec import ModelSpec

TASKS = {
    ("decoder", LM): "CAUSAL_LM",
    ("encoder-decoder", LM): "SEQ_2_SEQ_LM",
    SEQUENCE: "SEQ_CLS",
    TOKENS: "TOKEN_CLS",
}
"""PEFT's name of a use, by structure and head."""
CLASSIFIER = "classifier"
"""What PEFT trains whole in a classifier that has a module of this name, parts and all."""
SCORES = "head/labels/kernel"
"""PEFT expects the head in the file of a classifier: an adapter of one that left it alone names no
use."""


def save_adapter(
    out: str | Path,
    params: Params,
    spec: ModelSpec,
    family: Family,
    *,
    saved: Iterable[str] = (),
    rows: Mapping[str, range] = MappingProxyType({}),
    base: str = "",
    quantized: str = "",
    name: str | None = None,
) -> None:
    """Write the adapters in `params` into the new folder `out`, with the names of `family`.

    saved: names of leaves that were trained whole; rows: of tables, the ids that were trained
    alone. base: the digest of what was adapted; quantized: the type of its kernels, if they were;
    name: how PEFT finds it. Raises ConfigError when `out` exists, CheckpointError for a leaf that
    PEFT cannot hold apart, StorageError when the disk is full.
    """
    leaves, kind, saved = tree.flatten(params), head_of(spec), {*saved}
    shapes = {name: tuple(x.shape) for name, x in leaves.items() if "/lora_" not in name}
    files = names.tensors(names.expand(family.table(spec), shapes, spec.vocab))
    made, sizes, turned = _adapters(files, leaves)
    if not sizes:
        raise CheckpointError(str(out), "holds no adapter; export it with --merge")
    copies = family.copied(spec, shapes)
    modules = _modules(saved, files, copies, sizes)
    every = {tensor.rpartition(".")[0] for tensor in (*files, *copies)} | modules
    for tensor, parts in files.items():
        for copy in (tensor, *(a for a, b in copies.items() if b == tensor)):
            if any(copy.startswith(f"{module}.") for module in modules):
                slices = [np.asarray(leaves[part.leaf][part.at]) for part in parts]
                made[PREFIX + copy] = names.write(parts, slices)
    indices: dict[str, list[int]] = {}
    for tensor, (part, *_) in files.items():
        if ids := rows.get(part.leaf):
            table = names.write([part], [np.asarray(leaves[part.leaf])])
            made[PREFIX + tensor.removesuffix(".weight") + ROWS] = table[ids.start : ids.stop]
            indices[_named({tensor.removesuffix(".weight")}, every)[0]] = list(ids)
    drops = {float(leaf.ravel()[0]) for n, leaf in leaves.items() if n.endswith("/lora_drop")}
    values = _config(sizes, every) | {
        "task_type": TASKS.get(kind if SCORES in saved else (spec.structure, kind)),
        "base_model_name_or_path": name,
        "lora_dropout": max(drops, default=0.0),
        "use_dora": any(name.endswith(ENDS["m"]) for name in made),
        "fan_in_fan_out": turned,
        "modules_to_save": _named(modules, every) or None,
        "trainable_token_indices": indices or None,
    }
    tensors = {name: Lazy(x.shape, x.dtype, lambda x=x: x) for name, x in made.items()}
    with whole(out) as folder:
        (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        size = sum(x.nbytes for x in made.values())
        told = {key: text for key, text in ((BASE, base), (QUANTIZED, quantized)) if text}
        write_tensors(folder, tensors, max_shard_bytes=size + 1, metadata=told, stem=STEM)


def _adapters(
    files: Mapping[str, list[Piece]], leaves: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, float]], bool]:
    """(their tensors by name, (rank, alpha) by module, whether kernels lie as [in, out])."""
    made: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, float]] = {}
    turned = False
    for tensor, parts in files.items():
        if any(stem_of(part) + "lora_a" in leaves for part in parts):
            module = tensor.removesuffix(".weight")
            found, sizes[module], turned = _factored(parts, leaves)
            made |= {f"{PREFIX}{module}{ENDS[part]}": array for part, array in found.items()}
    return made, sizes, turned


def _factored(
    parts: list[Piece], leaves: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], tuple[int, float], bool]:
    """({a, b and m: their tensors}, (rank, alpha), whether the kernel lies as [in, out]) of one of
    their modules.
    """
    at, own = parts[0].at, []
    for part in parts:
        beside = stem_of(part)
        there = [x for x in lora.PARTS if beside + x in leaves]
        own.append({x: np.asarray(leaves[beside + x][at], np.float32) for x in there})
    factors = [lora.factors(x) if x else None for x in own]  # pyright: ignore[reportArgumentType]
    total = sum(pair[0].shape[-1] for pair in factors if pair)
    scales = [float(x["lora_scale"]) if x else 1.0 for x in own]
    scale = next(s for s, x in zip(scales, own, strict=True) if x)
    low = [low_rank(part, leaves, total) for part in parts]
    slices, first = [], 0
    for part, pair, mine in zip(low, factors, scales, strict=True):
        b = np.zeros(part.b.parts[part.b.part], np.float32)
        if pair:
            b[first : first + pair[1].shape[0]] = np.asarray(pair[1]) * (mine / scale)
            first += pair[1].shape[0]
        slices.append(b)
    a = np.concatenate([np.asarray(pair[0]) for pair in factors if pair], -1)
    found = {"a": names.write([low[0].a], [a]), "b": names.write([x.b for x in low], slices)}
    if any("lora_m" in x for x in own):
        norms = [
            x["lora_m"] if x else column_norms(part, np.asarray(leaves[part.leaf][at]))
            for part, x in zip(parts, own, strict=True)
        ]
        found["m"] = names.write([x.outputs for x in low], norms)
    return found, (total, scale * total), low[0].turned


def _modules(
    saved: set[str],
    files: Mapping[str, list[Piece]],
    copies: Mapping[str, str],
    adapted: Iterable[str],
) -> set[str]:
    """Their modules that hold the leaves `saved`, of tied ones every copy."""
    tensors = {name for name, parts in files.items() if any(p.leaf in saved for p in parts)}
    tensors |= {copy for copy, original in copies.items() if original in tensors}
    modules = {tensor.rpartition(".")[0] for tensor in tensors}
    for module in sorted(modules):
        inner = [name for name in files if name.startswith(f"{module}.")]
        if not module or any("." in name.removeprefix(f"{module}.") for name in inner):
            lost = min(t for t in tensors if t.rpartition(".")[0] == module)
            raise CheckpointError("export", f"{lost} is no module that PEFT can save; use --merge")
        if module in adapted:
            what = "has an adapter and is trained whole too, which PEFT cannot hold; use --merge"
            raise CheckpointError("export", f"{module} {what}")
    whole = {tensor for tensor in files if tensor.startswith(f"{CLASSIFIER}.")}
    if whole and whole <= tensors:
        modules = {m for m in modules if not m.startswith(f"{CLASSIFIER}.")} | {CLASSIFIER}
    return modules


def _config(sizes: Mapping[str, tuple[int, float]], every: set[str]) -> dict[str, Any]:
    """Which modules are adapted, and how: the commonest rank, and the others by name."""
    common = Counter(sizes.values()).most_common(1)[0][0]
    ranks, alphas = {}, {}
    for size in sorted(set(sizes.values()) - {common}):
        for name in _named({module for module, its in sizes.items() if its == size}, every):
            ranks[name], alphas[name] = size[0], _plain(size[1])
    return {
        "peft_type": "LORA",
        "r": common[0],
        "lora_alpha": _plain(common[1]),
        "target_modules": _named(set(sizes), every),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": False,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _named(modules: set[str], every: set[str]) -> list[str]:
    """The shortest ends of names that only `modules` have among `every`; else the whole names."""
    for depth in range(1, 5):
        ends = {".".join(module.split(".")[-depth:]) for module in modules}
        if {e for e in every if any(f".{e}".endswith(f".{end}") for end in ends)} == modules:
            return sorted(ends)
    return sorted(modules)


def _plain(value: float) -> int | float:
    near = round(value)
    return near if math.isclose(value, near, rel_tol=1e-6) else value
