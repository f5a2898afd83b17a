"""From a configuration to the parts of a run: tokenizer, data, mesh, network, optimizer, keeper."""

import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxlm.checkpoint.commit import Checkpoints
from jaxlm.config.schema import RunConfig
from jaxlm.core import compiler, distributed, slices
from jaxlm.core.errors import CheckpointError, ConfigError
from jaxlm.core.mesh import AXES as MESH_AXES
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.core.sizes import check_batch
from jaxlm.core.tree import Mask, Params
from jaxlm.data.pipeline import Dataset
from jaxlm.hub.fetch import local
from jaxlm.inference.run import matched, rows_before
from jaxlm.models.rows import tables
from jaxlm.models.spec import ModelSpec
from jaxlm.objectives.kinds import SENTINELS
from jaxlm.observe.progress import Progress
from jaxlm.text import chat
from jaxlm.text import tokenizer as tokenizers
from jaxlm.text.tokenizer import Tokenizer
from jaxlm.text.train import train as train_tokenizer
from jaxlm.training import classifier, gauges, reading, receipt
from jaxlm.training.building import Built, build
from jaxlm.training.evaluate import Gauge
from jaxlm.training.facts import facts
from jaxlm.training.gauges import Texts
from jaxlm.training.objective import check_fits
from jaxlm.training.resume import steps_of
from jaxlm.training.state import Keeper


@dataclass(frozen=True)
class Run:
    """Everything that the loop needs."""

    config: RunConfig
    folder: Path
    spec: ModelSpec
    tokenizer: Tokenizer
    layout: Layout
    data: Dataset
    steps: int
    """Updates in all."""
    rows: int | None
    """Rows in all, when `epochs` says where the data ends; later ones are filler."""
    keeper: Keeper
    built: Built
    """The step, and the shapes of what it changes."""
    options: dict[str, Any]
    """The compiler's, of the step."""
    gauges: tuple[Gauge, ...]
    """What is scored at each evaluation."""
    facts: dict[str, Any]
    """What `init` names; parameters, FLOPs per token and the peak they are compared with."""


def assemble(config: RunConfig, folder: Path, voice: Progress) -> Run:
    """Read or train the tokenizer, open the data, and make everything but the parameters.

    Raises ConfigError or DataError for what cannot run, before anything is compiled.
    """
    check_fits(config.objective.type, config.model)
    tokenizer = get_tokenizer(config, folder / "tokenizer", voice)
    spec = config.model.filled(vocab=tokenizer.vocab, max_length=config.length)
    check_spec(spec, config, tokenizer)
    layout = lay_out(config, voice)
    check_batch(config.batch, config.microbatches, layout.size("batch"))
    opening = partial(reading.read, config, tokenizer, voice.say, verify=distributed.index() == 0)
    data, held = distributed.together("data", opening)
    if distributed.index() == 0:
        reading.report(data, tokenizer, folder, voice.say)
    check_best(config, scored=held is not None)
    opening = partial(gauges.read, config, spec, tokenizer, held)
    texts = distributed.together("texts", opening)
    check_same(tokenizer, data, texts)
    steps, rows = steps_of(config, data.rows_for)
    built = build(config, spec, layout, steps=steps, tokenizer=tokenizer)
    shown = layout, built.forward, built.objective
    given = config, texts, tokenizer, *shown, folder, voice.say
    scored = gauges.make(*given, spec=spec, base=built.base)
    if distributed.index() == 0:
        tell(config, built.params, built.mask, built.opt_state, folder, voice)
    checkpoints = keeping(config, folder, voice)
    return Run(
        config=config,
        folder=folder,
        spec=spec,
        tokenizer=tokenizer,
        layout=layout,
        data=data,
        steps=steps,
        rows=rows,
        keeper=Keeper(config, layout, built.optimizer, built.mask, checkpoints),
        built=built,
        options=compiled_with(layout, voice),
        gauges=scored,
        facts=beginning(config, built.params, voice)
        | facts(built.live, built.frozen, spec, data.columns),
    )


def lay_out(config: RunConfig, voice: Progress) -> Layout:
    """The mesh over all devices, which is said where there are several."""
    count = config.mesh.slices
    found = slices.find(jax.devices(), count)
    sizes = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
    mesh = make_mesh(sizes, slices=found)
    if mesh.size > 1:
        voice.say(slices.describe(dict(mesh.shape), found, counted=count > 0))
    return Layout(mesh)


def compiled_with(layout: Layout, voice: Progress) -> dict[str, Any]:
    """The compiler's options for several devices, which are said.

    Raises ClusterError where processes would be told otherwise: their collectives would not meet.
    """
    assert isinstance(layout.mesh, Mesh)  # of a run, whose devices are here
    chosen = compiler.choose(list(layout.mesh.devices.flat))
    distributed.compare("compiler", {"compiler options": str(chosen.options)} | compiler.said())
    if line := chosen.line():
        voice.say(line)
    return chosen.options


def tell(
    config: RunConfig, want: Params, mask: Mask, state: Any, folder: Path, voice: Progress
) -> None:
    """Say what trains, what of it is new and what that takes, and write it into the folder."""
    new = classifier.new_leaves(config, want)
    found = receipt.receipt(matched(config, want), want, mask, state, new)
    voice.say("\n".join(receipt.lines(found)))
    receipt.write(found, folder)


def keeping(config: RunConfig, folder: Path, voice: Progress) -> Checkpoints:
    """The checkpoints of a run, kept as its configuration says."""
    kept = config.checkpoint
    return Checkpoints(
        folder / "checkpoints",
        keep=kept.keep,
        keep_every=kept.keep_every,
        keep_best=kept.keep_best,
        warn=voice.warn,
    )


def get_tokenizer(config: RunConfig, folder: Path, voice: Progress) -> Tokenizer:
    """The run's own tokenizer: the one in its folder, else a given one or one trained now."""
    path = config.tokenizer.path
    kind, vocab = (None, 0) if path else (config.tokenizer.type, config.tokenizer.vocab)
    sentinels = config.objective.type in SENTINELS
    form = "encoder-decoder" if sentinels else config.model.structure

    def make() -> None:
        if folder.is_dir():
            return
        if kind is None:
            made = tokenizers.load(local(path or ""))
        else:
            with voice.phase("training the tokenizer"):
                made = train_tokenizer(kind, vocab, reading.texts(config), form)
        if config.objective.type == "sft" and config.examples.template:
            chat.adopt(made, config.examples.template)  # so that it is asked as it was taught
        temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        made.save(temporary)
        temporary.replace(folder)

    distributed.agree("tokenizer", make)
    return tokenizers.load(folder)


def beginning(config: RunConfig, want: Params, voice: Progress) -> dict[str, str | None]:
    """For the record: `init`, and which rows it lacks and the run adds, which is said too."""
    old, new = rows_before(config), config.model.vocab
    if not old:
        return {"init": config.init}
    names = " and ".join(tables(want))
    what = f"rows {old} to {new - 1} of {names}: new, each the mean of the {old} before"
    voice.say(what)
    return {"init": config.init, "new_rows": what}


def check_spec(spec: ModelSpec, config: RunConfig, tokenizer: Tokenizer) -> None:
    """Refuse what JAX would clamp in silence: ids and positions beyond their tables.

    Raises CheckpointError where `init` came so, else ConfigError.
    """
    if spec.vocab < tokenizer.vocab and config.init:
        what = f"its tokenizer has {tokenizer.vocab} ids, its model {spec.vocab}"
        raise CheckpointError(config.init, what)
    if spec.vocab < tokenizer.vocab:
        raise ConfigError(
            "model.vocab",
            f"{spec.vocab} is less than the tokenizer's {tokenizer.vocab} ids; leave it out",
        )
    for key in () if spec.experts.count else ("balance_loss", "router_z_loss"):
        if getattr(spec, key):
            raise ConfigError(f"model.{key}", "is of experts, which the model has none of; use 0")
    if spec.structure == "encoder-decoder" and spec.encoder.start >= spec.vocab:
        what = f"id {spec.encoder.start} is outside the vocabulary of {spec.vocab} ids"
        raise ConfigError("model.encoder.start", f"{what}; use the tokenizer's {tokenizer.pad}")
    if spec.max_length < config.length:
        raise ConfigError(
            "length",
            f"{config.length} is longer than model.max_length={spec.max_length}; "
            f"use length={spec.max_length} or less",
        )


def check_best(config: RunConfig, *, scored: bool) -> None:
    """Raise ConfigError when `keep_best` would look at no checkpoint, or at few of them."""
    save, score = config.checkpoint.every, config.evaluate.every
    if not config.checkpoint.keep_best:
        return
    if not scored:
        raise ConfigError("checkpoint.keep_best", "nothing is scored; set data.validation too")
    if not score or (save and save % score):
        raise ConfigError(
            "checkpoint.keep_best",
            f"a checkpoint every {save} steps is not scored every {score} steps; "
            f"use evaluate.every={save or config.steps}",
        )


def check_same(tokenizer: Tokenizer, data: Dataset, texts: Texts) -> None:
    """Raise ClusterError, on all, when a process would train on something else than the others."""
    facts = {
        "tokenizer": tokenizer.digest,
        "data": data.digest,
        "validation": texts.held.digest if texts.held else "",
        "general text": texts.general.digest if texts.general else "",
        "prompts": repr([each.ids for each in texts.prompts]),
    }
    distributed.compare("same data", facts)
