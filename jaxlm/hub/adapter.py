"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, out and in.

A tensor that holds several of our kernels has one adapter there: written, theirs has all our ranks,
B with zeros where a part does not read another's; read, each part has the whole A. Both are exact.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError
from jaxlm.core.mesh import Layout
from jaxlm.core.tree import Params
from jaxlm.families import names
from jaxlm.families.family import Family
from jaxlm.families.heads import LM, head_of
from jaxlm.families.names import Piece
from jaxlm.hub.save import whole
from jaxlm.hub.shards import Lazy, write_tensors
from jaxlm.hub.tensors import Tensors, open_tensors, read_metadata
from jaxlm.models import lora
from jaxlm.models.axes import AXES
from jaxlm.models.spec import ModelSpec

CONFIG, STEM = "adapter_config.json", "adapter_model"
BASE = "jaxlm.base"
"""Of the file's metadata: the digest of the model that the adapter was trained on."""
PREFIX = "base_model.model."
ENDS = {"a": ".lora_A.weight", "b": ".lora_B.weight", "m": ".lora_magnitude_vector"}
TASKS = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}
STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin an adapter, of PEFT's, that leave the base as it is."""
EMPTY = ("layer_replication", "megatron_config", "trainable_token_indices", "target_parameters")
"""Options of PEFT that are more than an adapter beside a kernel."""


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(path) / CONFIG).is_file()


def save_adapter(
    out: str | Path,
    params: Params,
    spec: ModelSpec,
    family: Family,
    *,
    saved: Iterable[str] = (),
    base: str = "",
    name: str | None = None,
) -> None:
    """Write the adapters in `params` into the new folder `out`, with the names of `family`.

    saved: names of leaves that were trained whole. base: the digest of what was adapted; name: how
    PEFT finds it. Raises ConfigError when `out` exists, CheckpointError for a leaf that PEFT cannot
    hold apart, StorageError when the disk is full.
    """
    leaves = tree.flatten(params)
    shapes = {name: tuple(x.shape) for name, x in leaves.items() if "/lora_" not in name}
    files = names.tensors(names.expand(family.table(spec), shapes, spec.vocab))
    made: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, float]] = {}
    turned = False
    for tensor, parts in files.items():
        if any(_beside(part) + "lora_a" in leaves for part in parts):
            module = tensor.removesuffix(".weight")
            found, sizes[module], turned = _factored(parts, leaves)
            made |= {f"{PREFIX}{module}{ENDS[part]}": array for part, array in found.items()}
    if not sizes:
        raise CheckpointError(str(out), "holds no adapter; export it with --merge")
    copies = family.copied(spec, shapes)
    modules = _modules(set(saved), files, copies, sizes)
    for tensor, parts in files.items():
        for copy in (tensor, *(a for a, b in copies.items() if b == tensor)):
            if copy.rpartition(".")[0] in modules:
                slices = [np.asarray(leaves[part.leaf][part.at]) for part in parts]
                made[PREFIX + copy] = names.write(parts, slices)
    drops = {float(leaf.ravel()[0]) for n, leaf in leaves.items() if n.endswith("/lora_drop")}
    every = {tensor.rpartition(".")[0] for tensor in (*files, *copies)}
    values = _config(sizes, every) | {
        "task_type": TASKS.get(spec.structure) if head_of(spec) == LM else None,
        "base_model_name_or_path": name,
        "lora_dropout": max(drops, default=0.0),
        "use_dora": any(name.endswith(ENDS["m"]) for name in made),
        "fan_in_fan_out": turned,
        "modules_to_save": _named(modules, every) or None,
    }
    tensors = {name: Lazy(x.shape, x.dtype, lambda x=x: x) for name, x in made.items()}
    with whole(out) as folder:
        (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        size, told = sum(x.nbytes for x in made.values()), {BASE: base} if base else {}
        write_tensors(folder, tensors, max_shard_bytes=size + 1, metadata=told, stem=STEM)


def _factored(
    parts: list[Piece], leaves: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], tuple[int, float], bool]:
    """({a, b and m: their tensors}, (rank, alpha), whether the kernel lies as [in, out]) of one of
    their modules.
    """
    at, own = parts[0].at, []
    for part in parts:
        beside = _beside(part)
        there = [x for x in lora.PARTS if beside + x in leaves]
        own.append({x: np.asarray(leaves[beside + x][at], np.float32) for x in there})
    factors = [lora.factors(x) if x else None for x in own]  # pyright: ignore[reportArgumentType]
    total = sum(pair[0].shape[-1] for pair in factors if pair)
    scales = [float(x["lora_scale"]) if x else 1.0 for x in own]
    scale = next(s for s, x in zip(scales, own, strict=True) if x)
    low = [_low(part, leaves, total) for part in parts]
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
            x["lora_m"] if x else _norms(part, np.asarray(leaves[part.leaf][at]))
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


def load_adapter(
    path: str | Path,
    params: Params,
    spec: ModelSpec,
    family: Family,
    layout: Layout,
) -> Params:
    """`params`, which have no adapter, with the one in the folder `path`; float32.

    Layers that have none get zeros; parameters saved whole replace those of the base, in its type.
    Raises CheckpointError for what PEFT does and we do not, and for names and shapes that the base
    does not have.
    """
    where, config = str(path), _read_config(Path(path))
    tensors, leaves = open_tensors(path, STEM), tree.flatten(params)
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    pieces = names.expand(family.table(spec), shapes, spec.vocab)
    files = _in_table(where, tensors, family)
    made: dict[str, Any] = {}
    used: set[str] = set()
    for leaf in shapes:
        own = [piece for piece in pieces if piece.leaf == leaf]
        adapted = [p for p in own if p.name.removesuffix(".weight") + ENDS["a"] in files]
        if adapted and leaf.endswith("/kernel") and "blocks/" in leaf:
            made |= _read_factors(where, adapted, leaves, tensors, files, config)
            used |= {p.name.removesuffix(".weight") + e for p in adapted for e in ENDS.values()}
        if there := [piece for piece in own if piece.name in files]:
            array = np.array(leaves[leaf])
            for piece in there:
                shape, tensor = array[piece.at].shape, tensors[files[piece.name]]
                array[piece.at] = names.read(piece, tensor, shape)
                used.add(piece.name)
            made[leaf] = array.astype(leaves[leaf].dtype)
    used |= _check_copies(where, tensors, files, family.copied(spec, shapes))
    if left := sorted(set(files) - used):
        raise CheckpointError(where, f"{files[left[0]]} adapts nothing that the base has")
    shardings = tree.flatten(layout.shardings(tree.unflatten(made), AXES))
    return tree.unflatten(
        leaves | {name: jax.device_put(array, shardings[name]) for name, array in made.items()}
    )


def base_of(path: str | Path) -> str | None:
    """The digest of the base that an adapter names; None of one that was not made here."""
    return read_metadata(Path(path) / f"{STEM}.safetensors").get(BASE)


def _read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json. Raises CheckpointError for what is not a plain LoRA."""
    where = path / CONFIG
    try:
        config = json.loads(where.read_bytes())
    except OSError as error:
        raise CheckpointError(str(where), f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(str(where), f"not JSON: {error}; download it again") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise CheckpointError(str(where), "is not of peft_type LORA; other adapters are not read")
    start = config.get("init_lora_weights", True)
    if start not in STARTS:
        advice = "save it with path_initial_model_for_weight_conversion"
        what = f"init_lora_weights={start!r} has changed the base; {advice}"
        raise CheckpointError(str(where), what)
    if config.get("bias", "none") != "none":
        raise CheckpointError(str(where), "bias is not none; biases are not read")
    if odd := [key for key in EMPTY if config.get(key)]:
        raise CheckpointError(str(where), f"{odd[0]} is not supported")
    for key in ("rank_pattern", "alpha_pattern"):
        for name in config.get(key) or {}:
            if not re.fullmatch(r"[\w.]+", _literal(name)):
                raise CheckpointError(str(where), f"{key}: {name!r} is no name of a module")
    return config


def _in_table(where: str, tensors: Tensors, family: Family) -> dict[str, str]:
    """The table's name of each tensor, ends of an adapter kept -> the file's name."""
    modules: dict[str, tuple[str, str]] = {}
    for name in tensors:
        if not name.startswith(PREFIX):
            raise CheckpointError(where, f"{name} does not begin with {PREFIX}")
        bare = name.removeprefix(PREFIX)
        if bare.endswith(f"{ENDS['m']}.weight"):
            bare = bare.removesuffix(".weight")
        end = next((end for end in ENDS.values() if bare.endswith(end)), "")
        modules[name] = (bare.removesuffix(end) + (".weight" if end else ""), end)
    known = names.in_file({own for own, _ in modules.values()}, family.prefix, family.renamed)
    renamed = {theirs: ours for ours, theirs in known.items()}
    return {
        (renamed[own].removesuffix(".weight") + end if end else renamed[own]): name
        for name, (own, end) in modules.items()
    }


def _read_factors(
    where: str,
    pieces: list[Piece],
    leaves: Mapping[str, Any],
    tensors: Tensors,
    files: Mapping[str, str],
    config: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """The leaves of one kernel's adapter, over all layers."""
    kernel, beside = leaves[pieces[0].leaf], _beside(pieces[0])
    layers, (inputs, outputs) = kernel.shape[0], lora.sides(pieces[0].leaf, kernel.shape)
    modules = {piece.at: piece.name.removesuffix(".weight") for piece in pieces}
    rank = max(tensors[files[module + ENDS["a"]]].shape[0] for module in modules.values())
    a, b = np.zeros((layers, *inputs, rank), np.float32), np.zeros((layers, rank, *outputs), "f4")
    scale, m = np.zeros(layers, np.float32), None
    if any(module + ENDS["m"] in files for module in modules.values()):
        m = np.stack([_norms(pieces[0], np.asarray(kernel[i])) for i in range(layers)])
    for piece in pieces:
        module, at = modules[piece.at], piece.at
        there = {part: module + end for part, end in ENDS.items() if module + end in files}
        found = {part: tensors[files[name]] for part, name in there.items()}
        if "b" not in found:
            raise CheckpointError(where, f"{module} has lora_A and no lora_B")
        own = found["a"].shape[0]
        low = _low(piece, leaves, own)
        a[at][..., :own] = names.read(low.a, found["a"], (*inputs, own))
        b[at][:own] = names.read(low.b, found["b"], (own, *outputs))
        scale[at] = _scale(module, own, config)
        if m is not None and "m" in found:
            m[at] = names.read(low.outputs, found["m"].reshape(-1), outputs)
    if len(pieces[0].parts) > 1:  # the columns that other parts of the tensor read alone
        read = b.reshape(layers, rank, -1).any((0, 2))
        read = read if read.any() else ~read
        a, b = a[..., read], b[:, read]
    made = {"lora_a": a, "lora_b": b, "lora_scale": scale} | ({} if m is None else {"lora_m": m})
    return {beside + part: array for part, array in made.items()}


def _check_copies(
    where: str, tensors: Tensors, files: Mapping[str, str], copies: Mapping[str, str]
) -> set[str]:
    """The copies in a file of tensors that are one with others here, which they must equal."""
    there = {copy: original for copy, original in copies.items() if copy in files}
    for copy, original in there.items():
        if original not in files or not np.array_equal(
            tensors[files[copy]], tensors[files[original]]
        ):
            what = f"{copy} is not {original}, which the base ties it to; merge it there first"
            raise CheckpointError(where, what)
    return set(there)


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """What PEFT multiplies a module's product by."""
    alpha = config.get("lora_alpha", 8)
    for name, its in (config.get("alpha_pattern") or {}).items():
        if f".{module}".endswith(f".{_literal(name)}"):
            alpha = its
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _literal(pattern: str) -> str:
    """A pattern of PEFT that is a name, as the name."""
    return pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")


def _low(piece: Piece, leaves: Mapping[str, Any], rank: int) -> names.Factors:
    inputs, _ = lora.sides(piece.leaf, leaves[piece.leaf].shape)
    return names.factors(piece, len(inputs), rank)


def _norms(piece: Piece, kernel: np.ndarray) -> np.ndarray:
    """The norm of each output's column of one layer's kernel, float32."""
    inputs, outputs = lora.sides(piece.leaf, (1, *kernel.shape))
    flat = kernel.astype(np.float32).reshape(math.prod(inputs), -1)
    return np.sqrt(np.square(flat).sum(0)).reshape(outputs)


def _beside(piece: Piece) -> str:
    return piece.leaf.removesuffix("kernel") if piece.leaf.endswith("/kernel") else "\0"


def _plain(value: float) -> int | float:
    near = round(value)
    return near if math.isclose(value, near, rel_tol=1e-6) else value
