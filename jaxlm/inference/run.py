"""A run directory opened to be used: its configuration, tokenizer, architecture and parameters.

What a run starts from, `init`, is another run, an import or a Hugging Face folder.
"""

import re
import sys
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm import families
from jaxlm.checkpoint import inspect
from jaxlm.checkpoint.commit import Checkpoints
from jaxlm.checkpoint.digest import Slices, digests
from jaxlm.checkpoint.manifest import chain
from jaxlm.config.objectives import HEADLESS, Contrastive
from jaxlm.config.schema import RunConfig
from jaxlm.core import parts, tree
from jaxlm.core.errors import CheckpointError
from jaxlm.core.mesh import Layout
from jaxlm.core.platform import target
from jaxlm.core.tree import Mask, Params
from jaxlm.families.heads import Labels, named
from jaxlm.hub import load as folders
from jaxlm.hub.pooling import pooling_of
from jaxlm.inference import head, imported, vocabulary
from jaxlm.inference.frozen import Store, typed
from jaxlm.inference.origin import Run, labels_of, open_run, origin
from jaxlm.models import depth, lora, quantize, rows
from jaxlm.models.axes import AXES
from jaxlm.models.embedding import pooling
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import param_shapes
from jaxlm.text import tokenizer as tokenizers
from jaxlm.text.tokenizer import Tokenizer

Base = dict[str, str | int]
"""What a checkpoint says of the base that it does not hold: its step and digest."""


def unquantized(run: Run) -> Run:
    """The run as if the kernels of its base were whole. An adapter that began as what they lost is
    then without what it began as, which is that of PiSSA in form.
    """
    its = run.config.lora
    begun = its.model_copy(update={"init": "pissa"}) if its.init == "loftq" else its
    config = run.config.model_copy(update={"frozen_dtype": "auto", "lora": begun})
    return replace(run, config=config)


def to_stderr(line: str) -> None:
    """Where a warning goes when nobody else takes it: not among what is generated."""
    print(f"warning: {line}", file=sys.stderr)


@dataclass(frozen=True)
class Opened:
    """A model that was read, whatever it lay in."""

    params: Params
    spec: ModelSpec
    tokenizer: Tokenizer
    compute_dtype: str
    """As a run's key of that name."""
    config: dict[str, Any] | None
    """The config.json that it came with, if it did."""
    generation: dict[str, Any]
    """And generation_config.json; empty when there is none."""
    labels: Labels
    """Of a classifier."""
    pool: str | None = None
    """How texts are embedded, where that is known."""


def read(path: str | Path, layout: Layout, warn: Callable[[str], None] = to_stderr) -> Opened:
    """The newest good checkpoint of a run, an import, or a Hugging Face folder in its own types.

    Raises CheckpointError for what is none of them or is damaged, DataError for a tokenizer that
    cannot be read.
    """
    if folders.is_folder(path):
        folder = folders.open_folder(path)
        tokenizer = tokenizers.load(folder.path)
        folders.check_tokenizer(folder, tokenizer)
        for note in folder.notes:
            warn(note)
        params = folders.load_params(folder, layout)
        return _opened(folder, params, tokenizer, pooling_of(folder.path))
    if imported.is_imported(path):
        folder = imported.open_imported(path)
        params = imported.load_imported(path, folder, layout, warn)
        tokenizer = tokenizers.load(Path(path) / "tokenizer")
        folders.check_tokenizer(folder, tokenizer)
        return _opened(folder, params, tokenizer, pooling_of(imported.kept(path).parent))
    run = open_run(path)
    _, params = load_params(run, layout, warn=warn)
    came = imported.open_imported(path) if imported.kept(path).is_file() else None
    config, generation = (came.config, came.generation) if came else (None, {})
    if isinstance(run.config.objective, Contrastive):
        pool = pooling(run.config.objective.pool, run.spec)
    else:
        pool = pooling_of(imported.kept(path).parent)
    kind, labels = run.config.compute_dtype, labels_of(run.config)
    given = params, run.spec, run.tokenizer, kind, config, generation, labels
    return Opened(*given, pool)


def _opened(
    folder: folders.Folder, params: Params, tokenizer: Tokenizer, pool: str | None = None
) -> Opened:
    given = params, folder.spec, tokenizer, "auto", folder.config, folder.generation
    return Opened(*given, named(folder.config, folder.spec), pool)


def shapes(config: RunConfig, spec: ModelSpec, layout: Layout) -> Params:
    """Every parameter of a run as it trains them, as ShapeDtypeStructs with shardings."""
    store = storing(config, spec, layout)
    base = store.shapes() if store else param_shapes(spec, layout, jnp.dtype(config.param_dtype))
    return layout.placed(jax.eval_shape(partial(adapted, config, layout), base), AXES)


def storing(config: RunConfig, spec: ModelSpec, layout: Layout) -> Store | None:
    """How the run stores what it reads, when what it freezes is stored otherwise than the rest."""
    if config.frozen_dtype == "auto":
        return None
    base = param_shapes(spec, layout, jnp.dtype(config.param_dtype))
    plain = _begun(config).model_copy(update={"frozen_dtype": "auto"})
    params = jax.eval_shape(partial(adapted, plain, layout), base)
    return Store(config, base, params, trained(config, params), layout)


def _begun(config: RunConfig) -> RunConfig:
    """The configuration without what the values of new adapters are made of: only their shapes."""
    return config.model_copy(update={"lora": config.lora.model_copy(update={"init": "default"})})


def adapted(config: RunConfig, layout: Layout, params: Params) -> Params:
    """`params` as the run trains them: with its adapters, and apart what lies under `last_layers`,
    and the rows of new ids where they are named.

    The arrays of layers are given up where they are split.
    """
    if config.lora.rank:
        params = lora.add(
            params,
            layout,
            jax.random.fold_in(jax.random.key(config.seed), 1),
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            targets=config.lora.targets,
            rslora=config.lora.rslora,
            dropout=config.lora.dropout,
            init=config.lora.init,
            dora=config.lora.dora,
        )
    named = *config.lora.save, *(config.trainable or ())
    if parts.NEW_ROWS in named and (old := rows_before(config)):
        params = rows.split(params, layout, old, config.model.vocab)
    if count := parts.last_layers(config.trainable or ()):
        params = depth.split(params, layout, count)
    if config.frozen_dtype == "auto":
        return params
    return typed(config, params, trained(config, params))


def load_params(
    run: Run,
    layout: Layout,
    step: int | None = None,
    warn: Callable[[str], None] = to_stderr,
    store: Store | None = None,
) -> tuple[int, Params]:
    """(step, every parameter) of the newest good checkpoint, or of `step`.

    store: what each becomes, adapters merged: as it is read, of a run without adapters or `init`. A
    frozen base that the checkpoint only names is read from the run it came from, whose digest
    must be the one that was named. Raises CheckpointError.
    """
    want = shapes(run.config, run.spec, layout)
    checkpoints = Checkpoints(run.folder / "checkpoints", warn=warn)
    if not run.config.init:
        plain = store if tree.flatten(want).keys() == _names(run.spec, layout) else None
        step, params, _, _ = checkpoints.restore(want, None, step, plain and plain.leaf)
        return step, params if plain else _joined(params, run.spec, layout, store)
    mask = kept(run.config, want)
    live, _ = tree.partition(want, mask)
    step, live, _, meta = checkpoints.restore(live, None, step)
    frozen = frozen_params(run.config, layout, mask, want, meta["base"], warn)
    return step, _joined(tree.combine(live, frozen), run.spec, layout, store)


def _names(spec: ModelSpec, layout: Layout) -> Set[str]:
    return tree.flatten(param_shapes(spec, layout, jnp.float32)).keys()


def _joined(params: Params, spec: ModelSpec, layout: Layout, store: Store | None) -> Params:
    """The inverse of what `adapted` splits; stored, adapters are merged."""
    params = rows.joined(depth.joined(params, layout), layout, spec.vocab)
    return store.every(lora.merge(params)) if store else params


def trained(config: RunConfig, params: Params) -> Mask:
    """The names of the parameters that train: `trainable`, or all, or the adapters and `lora.save`.

    Of an adapter, only what `lora.TRAINED` finds. Raises ConfigError for a pattern that matches
    nothing.
    """
    return frozenset(name for names in matched(config, params).values() for name in names)


def matched(config: RunConfig, params: Params) -> dict[str, list[str]]:
    """Of each pattern of `trained` the names that it means."""
    rank = config.lora.rank
    every = tree.flatten(params)
    names = [name for name in every if "/lora_" not in name or re.search(lora.TRAINED, name)]
    names = [name for name in names if name.rpartition("/")[2] not in quantize.PARTS]
    if config.objective.type in HEADLESS:
        names = [name for name in names if not name.startswith("head/")]
    found = parts.matched(names, config.trainable or (("lora",) if rank else (".",)))
    if rank and config.lora.save:
        found |= parts.matched(names, config.lora.save, "lora.save")
    return found


def kept(config: RunConfig, params: Params) -> Mask:
    """The names that a checkpoint of a run with `init` holds: what trains, and all of adapters that
    began as singular vectors, trained or not: they are not made again, and another machine would
    not compute them to the bit.
    """
    leaves = tree.flatten(params)
    begun = [name for name in leaves if re.search(r"/lora_[abm]0?$", name)]
    begun = [name for name in begun if f"{name.rpartition('/')[0]}/lora_a0" in leaves]
    return trained(config, params).union(begun)


def frozen_params(
    config: RunConfig,
    layout: Layout,
    mask: Mask,
    want: Params,
    named: Base,
    warn: Callable[[str], None],
) -> Params:
    """What `mask` leaves out of a run with `init`: read from there, unless nothing of it is."""
    _, frozen = tree.partition(want, mask)
    if not frozen:
        return {}
    params, _ = base_params(_begun(config), layout, named, warn)
    return tree.partition(params, mask)[1]


def base_params(
    config: RunConfig, layout: Layout, named: Base | None, warn: Callable[[str], None]
) -> tuple[Params, Base]:
    """What a run with `init` starts from, as the run stores it, with new adapters; and its name.

    Adapters of `init` are merged, rows for ids that it lacks are added, and so is another head.
    named: the name that it
    had when the run began; None takes the newest step. Raises CheckpointError when it is another
    now, or holds nothing to start from.
    """
    folder, dtype = config.init or "", jnp.dtype(config.param_dtype)
    store = storing(config, config.model, layout)
    if folders.is_folder(folder):
        opened = folders.open_folder(folder)
        for note in (*opened.notes, *families.training_notes(opened.config)):
            warn(note)
        params, digest = _read_folder(opened, layout, dtype, store)
        found: Base = {"step": 0, "digest": digest}
    else:
        step = int(named["step"]) if named else newest(folder)
        if imported.is_imported(folder):
            opened = imported.open_imported(folder)
            params = imported.load_imported(folder, opened, layout, warn, store and store.leaf)
        else:
            _, params = load_params(open_run(folder), layout, step, warn, store)
        if not store:
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), lora.merge(params))
        found = {"step": step, "digest": inspect.manifest(f"{folder}/checkpoints", step).digest}
    if named and found != named:
        raise CheckpointError(
            folder, f"is not the base that was trained on: {found['digest']}, not {named['digest']}"
        )
    if not head.same(was := origin(folder), config):
        key = jax.random.key(config.seed)
        params = head.replaced(params, was, config.model, layout, dtype, key)
    if old := rows_before(config):
        want = param_shapes(config.model, layout, dtype)
        params = vocabulary.grown(params, want, old, config.model.vocab)
    return adapted(config, layout, params), found


def _read_folder(
    folder: folders.Folder, layout: Layout, dtype: Any, store: Store | None
) -> tuple[Params, str]:
    """(the parameters of a Hugging Face folder, their digest in `dtype`, however stored)."""
    if not store:
        params = folders.load_params(folder, layout, dtype)
        return params, chain({"params": digests(tree.flatten(params))[0]})
    sums = Slices(tree.flatten(param_shapes(folder.spec, layout, dtype)))

    def made(name: str, at: tuple[int, ...], x: Any) -> dict[str, Any]:
        sums.add(name, at, x)
        return store.slice(name, x)

    params = folders.load_params(folder, layout, store=made)
    return params, chain({"params": sums.tensors()})


def rows_before(config: RunConfig) -> int:
    """The ids that `init` has rows for, when the run's tokenizer has more; else 0."""
    if not config.init:
        return 0
    old = origin(config.init).spec.vocab
    return old if old < config.model.vocab else 0


def newest(folder: str) -> int:
    """The newest step of the run in `folder`. Raises CheckpointError when it has none."""
    if not (known := inspect.steps(f"{folder}/checkpoints")):
        raise CheckpointError(folder, "holds no checkpoint to start from; train it first")
    return known[-1]


def compute_dtype(name: str) -> Any:
    """The type of a config's `compute_dtype`: auto is bfloat16 but on the CPU."""
    if name == "auto":
        return jnp.float32 if target() == "cpu" else jnp.bfloat16
    return jnp.dtype(name)
