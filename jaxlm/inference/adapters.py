"""Adapters out of runs and onto models, with the digest of the base that they belong to."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import families
from jaxlm.checkpoint.commit import Checkpoints
from jaxlm.checkpoint.digest import digests
from jaxlm.checkpoint.manifest import chain
from jaxlm.config.objectives import Contrastive
from jaxlm.config.schema import Lora
from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError, ConfigError
from jaxlm.core.mesh import Layout, logical_axes, make_mesh
from jaxlm.core.tree import Params
from jaxlm.families.family import Family
from jaxlm.hub import load as folders
from jaxlm.hub.adapter import put_adapter, read_adapter
from jaxlm.hub.adapter_save import save_adapter
from jaxlm.hub.fetch import is_remote
from jaxlm.hub.pooling import write_pooling
from jaxlm.inference import imported
from jaxlm.inference.run import (
    Run,
    base_params,
    kept,
    load_params,
    open_run,
    rows_before,
    shapes,
    to_stderr,
    trained,
    unquantized,
)
from jaxlm.models import lora, quantize, rows
from jaxlm.models.axes import AXES
from jaxlm.models.embedding import pooling
from jaxlm.models.spec import ModelSpec


@dataclass(frozen=True)
class Adapter:
    """An adapter, or a sum of some, in the host's memory."""

    name: str
    """Its folder; of a sum all, with their weights."""
    leaves: dict[str, np.ndarray]
    base: Params
    """What it was read for."""
    pool: str | None = None
    """How texts are pooled with it, where its folder says so."""


def base_digest(params: Params, spec: ModelSpec) -> str:
    """A digest of the parameters in bfloat16, without the vocabulary's padding.

    It is the same however they are stored, in a run, an import or a Hugging Face folder. Of a
    classifier without its head, which may have been made for the adapter and leaves with it.
    """
    found, leaves = {}, tree.flatten(params)
    if spec.head.labels:
        leaves = {name: leaf for name, leaf in leaves.items() if not name.startswith("head/")}
    for name, leaf in leaves.items():
        axes = logical_axes(name, AXES) or ()
        known = tuple(slice(spec.vocab) if axis == "vocab" else slice(None) for axis in axes)
        found |= digests({name: leaf[known].astype(jnp.bfloat16)})[0]
    return chain({"params": found})


def family_of(config: dict[str, Any] | None, spec: ModelSpec) -> Family:
    """The family whose names an adapter has: of the config.json, or the first that fits."""
    return families.find(config) if config else families.fitting(spec)


def read(
    weights: Mapping[str, float],
    base: Params,
    spec: ModelSpec,
    family: Family,
    *,
    digest: Callable[[], str],
    force: bool = False,
) -> dict[str, np.ndarray]:
    """The leaves of the sum of the adapters in folders, each by its weight; of one its own.

    digest: of the base, asked for if need be. The ranks of several lie side by side, as PEFT's
    `cat` has them, which is exact. Raises CheckpointError for an adapter of another base, unless
    `force`, for one that is no summand, and as `read_adapter`.
    """
    found = {}
    for path, weight in weights.items():
        if not math.isfinite(weight):
            raise ConfigError(path, f"a weight of {weight} is no number; write 0.5")
        found[path], theirs = read_adapter(path, base, spec, family)
        if theirs and not force and theirs != (mine := digest()):
            what = f"was trained on another base ({theirs}) than this one ({mine})"
            raise CheckpointError(path, f"{what}; name its own, or force it")
    if list(weights.values()) == [1]:
        return found[next(iter(found))]
    for path, leaves in found.items():
        if whole := [n for n in leaves if not n.endswith(("/lora_a", "/lora_b", "/lora_scale"))]:
            raise CheckpointError(path, f"has {whole[0]}, of which there is no weighted sum")
    made: dict[str, np.ndarray] = {}
    for name in sorted({n for leaves in found.values() for n in leaves if n.endswith("lora_a")}):
        beside = name.removesuffix("lora_a")
        its = [(x, weights[path]) for path, x in found.items() if name in x]
        made[name] = np.concatenate([x[name] for x, _ in its], -1)
        numbered = its[0][0][f"{beside}lora_scale"].ndim
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = [x[f"{beside}lora_b"].T * (w * x[f"{beside}lora_scale"].T) for x, w in its]
        made[f"{beside}lora_b"] = np.concatenate(scaled, -1 - numbered).T
        if not np.isfinite(made[f"{beside}lora_b"]).all():
            what = "make a sum beyond what float32 holds; use smaller ones"
            raise ConfigError("adapters", f"weights of {[w for _, w in its]} {what}")
        made[f"{beside}lora_scale"] = np.ones_like(its[0][0][f"{beside}lora_scale"])
    return made


def is_lora_run(path: str | Path) -> bool:
    """Whether `path` is a run that trains adapters beside a base that lies elsewhere."""
    if folders.is_folder(path) or imported.is_imported(path):
        return False
    config = open_run(path).config
    return bool(config.lora.rank and config.init)


def export_adapter(source: str, out: str) -> Family:
    """Write the adapters of the run at `source`, and what it trained whole, as PEFT has them.

    Raises ConfigError for what is no such run, for one with tokens that its base lacks and no
    trained rows for them, and as `save_adapter`.
    """
    if not is_lora_run(source):
        what = "trains no adapter beside a base; write it whole with jaxlm convert export"
        raise ConfigError(source, what)
    kind = open_run(source).config.frozen_dtype
    run, layout = unquantized(open_run(source)), Layout(make_mesh({}, jax.devices()[:1]))
    config, init = run.config, run.config.init or ""
    _, params = load_params(run, layout, warn=to_stderr)
    mask = trained(config, shapes(config, run.spec, layout))
    saved = [name for name in mask if "/lora_" not in name]
    first, last = rows_before(config), run.spec.vocab
    tables = rows.tables(params) if first else {}
    new = {name: range(first, last) for name in tables if rows.beside(name) in mask}
    if tables.keys() - set(saved) - new.keys():
        what = "has tokens that its base lacks, and did not train their rows"
        raise ConfigError(source, f"{what}; export it with --merge")
    family = family_of(_config_of(init), run.spec)
    base = _base(run, layout) if saved else lora.without(params)
    save_adapter(
        out,
        params,
        run.spec,
        family,
        saved=saved,
        rows=new,
        base=base_digest(base, run.spec.model_copy(update={"vocab": first or last})),
        quantized=kind if kind in quantize.KINDS else "",
        name=init.removeprefix("hf://").partition("@")[0] if is_remote(init) else init,
    )
    if isinstance(config.objective, Contrastive):
        write_pooling(Path(out), pooling(config.objective.pool, run.spec), run.spec.embed)
    return family


def check(source: str, out: str) -> None:
    """Raise CheckpointError unless the adapter in `out` is read as the one of the run `source`."""
    run, layout = unquantized(open_run(source)), Layout(make_mesh({}, jax.devices()[:1]))
    base, (_, params) = _base(run, layout), load_params(run, layout, warn=to_stderr)
    family = family_of(_config_of(run.config.init or ""), run.spec)
    spec = run.spec.model_copy(update={"vocab": rows_before(run.config) or run.spec.vocab})
    read_back = read({out: 1}, base, run.spec, family, digest=lambda: base_digest(base, spec))
    found = put_adapter(base, read_back, layout)
    mine, theirs = (tree.flatten(lora.merge(each)) for each in (params, found))
    for name, leaf in mine.items():
        axes = logical_axes(name, AXES) or ()
        known = tuple(slice(run.spec.vocab) if axis == "vocab" else slice(None) for axis in axes)
        a, b = (x[known].astype(jnp.float32) for x in (leaf, theirs[name]))
        if not jnp.allclose(a, b, atol=float(1e-5 * jnp.abs(a).max())):
            raise CheckpointError(out, f"is not the adapter of {source}: {name} differs")


def _base(run: Run, layout: Layout) -> Params:
    """What a run started from, without adapters: the step that its newest checkpoint names."""
    want = shapes(run.config, run.spec, layout)
    held, _ = tree.partition(want, kept(run.config, want))
    checkpoints = Checkpoints(run.folder / "checkpoints", warn=to_stderr)
    named = checkpoints.restore(held, None)[3]["base"]
    bare = run.config.model_copy(update={"lora": Lora()})
    return base_params(bare, layout, named, to_stderr)[0]


def _config_of(init: str) -> dict[str, Any] | None:
    """The config.json of what a run started from, if it has one."""
    if folders.is_folder(init):
        return folders.open_folder(init).config
    return imported.open_imported(init).config if imported.is_imported(init) else None
