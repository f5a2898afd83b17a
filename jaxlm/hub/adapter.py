"""Adapters in PEFT's format, adapter_config.json and adapter_model.safetensors, read.

A tensor that holds several of our kernels has one adapter there: written, theirs has all our ranks,
B with zeros where a part does not read another's; read, each part has the whole A. Both are exact.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError
from jaxlm.core.mesh import Layout
from jaxlm.core.tree import Params
from jaxlm.families import names
from jaxlm.families.family import Family
from jaxlm.families.names import Piece
from jaxlm.hub.tensors import open_tensors
from jaxlm.models import lora
from jaxlm.models.axes import AXES
from jaxlm.models.spec import ModelSpec

CONFIG, STEM = "adapter_config.json", "adapter_model"
BASE, QUANTIZED = "jaxlm.base", "jaxlm.quantized"
"""Of the file's metadata: the digest of the model that the adapter was trained on, and the type of
its kernels where they were quantized meanwhile."""
PREFIX = "base_model.model."
ENDS = {"a": ".lora_A.weight", "b": ".lora_B.weight", "m": ".lora_magnitude_vector"}
ROWS = ".token_adapter.trainable_tokens_delta"
HEADS = ("score.", "classifier.", "classification_head.")
"""In names of tensors that score labels."""
"""Ends the name of the rows of some ids [n, D] that replace those of a table."""
STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin an adapter, of PEFT's, that leave the base as it is."""
EMPTY = ("layer_replication", "megatron_config", "target_parameters")
"""Options of PEFT that are more than an adapter beside a kernel, or rows of a table."""


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(path) / CONFIG).is_file()


def read_adapter(
    path: str | Path, params: Params, spec: ModelSpec, family: Family
) -> tuple[dict[str, np.ndarray], str | None]:
    """(the leaves by name, float32, that the adapter in the folder `path` puts onto `params`, the
    digest of the base that it names, if it was made here).

    Layers that have none get zeros; parameters saved whole, and rows of ids, replace those of the
    base, in its type.
    Raises CheckpointError for what PEFT does and we do not, and for names and shapes that the base
    does not have.
    """
    where, config = str(path), read_config(Path(path))
    tensors, told = read_tensors(path)
    leaves = tree.flatten(params)
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    pieces = names.expand(family.table(spec), shapes, spec.vocab)
    files = in_table(where, tensors, family)
    made: dict[str, np.ndarray] = {}
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
        for piece in own:
            if (end := piece.name.removesuffix(".weight") + ROWS) in files:
                table, rows = np.array(made.get(leaf, leaves[leaf])), tensors[files[end]]
                made[leaf] = _with_rows(where, piece, table, rows, _ids(config, end))
                used.add(end)
    if config.get("trainable_token_indices") and not any(name.endswith(ROWS) for name in files):
        raise CheckpointError(where, "trainable_token_indices: holds no rows for them")
    parts, tied = names.tensors(pieces), bool(config.get("ensure_weight_tying"))

    def of_base(name: str) -> np.ndarray:
        return names.write(parts[name], [np.asarray(leaves[p.leaf][p.at]) for p in parts[name]])

    used |= _check_copies(where, tensors, files, family.copied(spec, shapes), of_base, tied)
    if left := sorted(set(files) - used):
        what = f"{files[left[0]]} adapts nothing that the base has"
        if any(word in left[0] for word in HEADS) and not spec.head.labels:
            what = f"holds {files[left[0]]}, of a head for labels, which the base has not"
            what += "; export the run that trained it: jaxlm convert export RUN OUT --merge"
        raise CheckpointError(where, what)
    return made, told.get(BASE)


def put_adapter(params: Params, leaves: dict[str, np.ndarray], layout: Layout) -> Params:
    """`params` with the leaves of an adapter, on the mesh; what is not replaced is shared."""
    shardings = tree.flatten(layout.shardings(tree.unflatten(leaves), AXES))
    return tree.unflatten(tree.flatten(params) | jax.device_put(leaves, shardings))


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(the tensors of an adapter, what its file says of its base: BASE and QUANTIZED).

    Raises CheckpointError for one of A or B that is no matrix of floats.
    """
    opened = open_tensors(path, STEM)
    for name, stored in opened.table.items():
        matrix = len(stored.shape) == 2 and 0 not in stored.shape
        if not (matrix or "lora_" not in name or name.endswith((ENDS["m"], f"{ENDS['m']}.weight"))):
            what = f"{name} has the shape {list(stored.shape)}, which is no matrix"
            raise CheckpointError(str(path), what)
        if not jnp.issubdtype(stored.dtype, jnp.floating):
            raise CheckpointError(str(path), f"{name} holds {stored.dtype}, no type of weights")
    if not opened.table:
        raise CheckpointError(str(path), "holds no tensor; save the adapter again")
    return dict(opened), opened.metadata  # all are views of one map


def read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json. Raises CheckpointError for what is not a plain LoRA."""
    where = path / CONFIG
    try:
        config = json.loads(where.read_bytes())
    except OSError as error:
        of_run = " that jaxlm adapter export wrote of this run" * (path / "config.yaml").is_file()
        what = f"cannot be read: {error.strerror}; name the folder of an adapter{of_run}"
        raise CheckpointError(str(where), what) from None
    except (ValueError, RecursionError) as error:
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
    given = config.get("trainable_token_indices") or []
    ids = given.values() if isinstance(given, dict) else [given]
    if not all(isinstance(each, list) and all(type(i) is int for i in each) for each in ids):
        raise CheckpointError(str(where), "trainable_token_indices is no list of ids")
    alphas = [config.get("lora_alpha", 8)]
    for key in ("rank_pattern", "alpha_pattern"):
        its = config.get(key) or {}
        if not isinstance(its, dict):
            raise CheckpointError(str(where), f"{key} is no object of names and numbers")
        if odd := [name for name in its if not re.fullmatch(r"[\w.]+", _literal(name))]:
            raise CheckpointError(str(where), f"{key}: {odd[0]!r} is no name of a module")
        alphas += its.values() if key == "alpha_pattern" else ()
    for alpha in alphas:
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise CheckpointError(str(where), f"lora_alpha: {alpha!r} is no number")
    return config


def split_names(where: str, tensors: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Of each name in a file that of the base's tensor, and the end of an adapter's, or nothing."""
    modules: dict[str, tuple[str, str]] = {}
    for name in tensors:
        if not name.startswith(PREFIX):
            raise CheckpointError(where, f"{name} does not begin with {PREFIX}")
        bare = name.removeprefix(PREFIX)
        if bare.endswith(f"{ENDS['m']}.weight"):
            bare = bare.removesuffix(".weight")
        end = next((end for end in (*ENDS.values(), ROWS) if bare.endswith(end)), "")
        modules[name] = (bare.removesuffix(end) + (".weight" if end else ""), end)
    return modules


def in_table(where: str, tensors: Mapping[str, np.ndarray], family: Family) -> dict[str, str]:
    """The table's name of each tensor, ends of an adapter kept -> the file's name."""
    modules = split_names(where, tensors)
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
    tensors: Mapping[str, np.ndarray],
    files: Mapping[str, str],
    config: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """The leaves of one kernel's adapter, over all layers."""
    kernel, beside = leaves[pieces[0].leaf], stem_of(pieces[0])
    numbered = lora.numbered(pieces[0].leaf, kernel.shape)
    inputs, outputs = lora.sides(pieces[0].leaf, kernel.shape)
    modules = {piece.at: piece.name.removesuffix(".weight") for piece in pieces}
    rank = max(tensors[files[module + ENDS["a"]]].shape[0] for module in modules.values())
    a, b = np.zeros((*numbered, *inputs, rank), "f4"), np.zeros((*numbered, rank, *outputs), "f4")
    scale, m = np.zeros(numbered, np.float32), None
    if doras := [module for module in modules.values() if module + ENDS["m"] in files]:
        if len(numbered) > 1:
            raise CheckpointError(where, f"{doras[0]} is an expert's, of which DoRA is not read")
        m = np.stack([column_norms(pieces[0], np.asarray(layer)) for layer in kernel])
    lows: dict[int, names.Factors] = {}  # of one layer, as of every other
    for piece in pieces:
        module, at = modules[piece.at], piece.at
        there = {part: module + end for part, end in ENDS.items() if module + end in files}
        found = {part: tensors[files[name]] for part, name in there.items()}
        if "b" not in found:
            raise CheckpointError(where, f"{module} has lora_A and no lora_B")
        own = found["a"].shape[0]
        if own not in lows:
            lows[own] = low_rank(piece, leaves, own)
        _check_factors(where, module, found, config)
        low, name = lows[own], {"name": f"{where}: {module}"}
        a[at][..., :own] = names.read(low.a._replace(**name), found["a"], (*inputs, own))
        b[at][:own] = names.read(low.b._replace(**name), found["b"], (own, *outputs))
        scale[at] = scale_of(module, own, config)
        if m is not None and "m" in found:
            m[at] = names.read(low.outputs._replace(**name), found["m"].reshape(-1), outputs)
    if len(pieces[0].parts) > 1:  # the columns that other parts of the tensor read alone
        read = b.reshape(len(b), rank, -1).any((0, 2))
        read = read if read.any() else ~read
        a, b = a[..., read], b[:, read]
    made = {"lora_a": a, "lora_b": b, "lora_scale": scale} | ({} if m is None else {"lora_m": m})
    return {beside + part: array for part, array in made.items()}


def _ids(config: Mapping[str, Any], module: str) -> list[int]:
    """Which ids the rows of a module are of."""
    given = config.get("trainable_token_indices") or []
    if not isinstance(given, dict):
        return given
    module = module.removesuffix(ROWS)
    return next((ids for name, ids in given.items() if f".{module}".endswith(f".{name}")), [])


def _with_rows(
    where: str, piece: Piece, table: np.ndarray, rows: np.ndarray, ids: list[int]
) -> np.ndarray:
    """A table [V, D], or [D, V], with the rows [n, D] of some ids replaced."""
    theirs = np.array(names.write([piece], [table[piece.at]]))
    if any(not 0 <= i < len(theirs) for i in ids):
        what = f"has a row for id {max(ids)}, and the base {len(theirs)}"
        raise CheckpointError(where, f"{what}; give the base those rows first")
    if rows.shape != (len(ids), theirs.shape[1]):
        what = f"{list(rows.shape)} for {len(ids)} ids of {theirs.shape[1]} numbers"
        raise CheckpointError(where, f"trainable_token_indices: its rows are {what}")
    theirs[ids] = rows
    made = table.copy()
    made[piece.at] = names.read(piece, theirs, table[piece.at].shape)
    return made


def _check_factors(
    where: str, module: str, found: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> None:
    """Raise CheckpointError for numbers that are none, and for what the configuration denies."""
    rank, ranks = found["a"].shape[0], [*(config.get("rank_pattern") or {}).values()]
    if "r" in config and rank not in [config["r"], *ranks]:
        what = f"{module} has the rank {rank}, and {CONFIG} r={config['r']!r}; download both again"
        raise CheckpointError(where, what)
    if config.get("use_dora") and "m" not in found:
        what = f"{module} has no lora_magnitude_vector, and {CONFIG} says use_dora"
        raise CheckpointError(where, f"{what}; save the adapter again")
    if not all(np.isfinite(np.asarray(part, np.float32)).all() for part in found.values()):
        raise CheckpointError(where, f"{module} has NaN or infinity in it; save the adapter again")


def _check_copies(
    where: str,
    tensors: Mapping[str, np.ndarray],
    files: Mapping[str, str],
    copies: Mapping[str, str],
    base: Callable[[str], np.ndarray],
    tied: bool,
) -> set[str]:
    """The copies in a file of tensors that are one with others here, which they must equal.

    base: what the base has under a name: what is not in the file stays as it is there, but where
    PEFT keeps them `tied`.
    """
    for copy, original in copies.items():
        if copy not in files and (tied or original not in files):
            continue
        one, other = (
            tensors[files[name]] if name in files else base(original) for name in (copy, original)
        )
        if not np.array_equal(one, other):
            what = f"{copy} is not {original}, which the base ties it to; merge it there first"
            raise CheckpointError(where, what)
    return set(copies) & set(files)


def scale_of(module: str, rank: int, config: Mapping[str, Any]) -> float:
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


def low_rank(piece: Piece, leaves: Mapping[str, Any], rank: int) -> names.Factors:
    """The pieces of the adapter of a kernel's piece; leaves: of the base, by name."""
    inputs, _ = lora.sides(piece.leaf, leaves[piece.leaf].shape)
    return names.factors(piece, len(inputs), rank)


def column_norms(piece: Piece, kernel: np.ndarray) -> np.ndarray:
    """The norm of each output's column of one layer's kernel, float32."""
    inputs, outputs = lora.sides(piece.leaf, (1, *kernel.shape))
    flat = kernel.astype(np.float32).reshape(math.prod(inputs), -1)
    return np.sqrt(np.square(flat).sum(0)).reshape(outputs)


def stem_of(piece: Piece) -> str:
    """What the names of an adapter's leaves begin with; no name's beginning for what has none."""
    return piece.leaf.removesuffix("kernel") if piece.leaf.endswith("/kernel") else "\0"
