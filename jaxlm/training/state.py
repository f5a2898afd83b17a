"""The state of a run: made fresh, restored, and what of it a checkpoint holds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.checkpoint.commit import Checkpoints
from jaxlm.checkpoint.inspect import steps
from jaxlm.checkpoint.retention import need
from jaxlm.config.load import load
from jaxlm.config.schema import RunConfig
from jaxlm.core import distributed, tree
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.core.mesh import Layout
from jaxlm.core.tree import Mask, Params
from jaxlm.hub.fetch import is_newest, is_remote, local, pinned
from jaxlm.inference.imported import keep
from jaxlm.inference.origin import origin
from jaxlm.inference.run import (
    Base,
    adapted,
    base_params,
    frozen_params,
    kept,
    shapes,
)
from jaxlm.inference.vocabulary import check_extends
from jaxlm.models.axes import AXES
from jaxlm.models.spec import RUNTIME, ModelSpec
from jaxlm.models.transformer import init_params
from jaxlm.text import tokenizer as tokenizers
from jaxlm.training import classifier
from jaxlm.training.optim import Optimizer, init_state, state_shapes
from jaxlm.training.step import TrainState


def inherit(config: RunConfig) -> RunConfig:
    """The configuration with the architecture and the tokenizer of `init`, when it names one.

    `init` becomes a name of the same bytes from everywhere: a path from the root, or the commit
    that a branch of the Hub has now; of a run that continues, the one that it began with. A
    tokenizer of its own may add ids to that of `init`: the model then has rows for them. So are the
    names of labels, of a classifier that names none; its head is the matter of `headed`. Raises
    ConfigError for a key of `model` that is set to something else, and for a tokenizer in which ids
    are other text.
    """
    if not config.init:
        return config
    init = _pinned(config)
    was = origin(init)
    spec, path = was.spec, was.tokenizer
    runtime = {key: getattr(config.model, key) for key in RUNTIME}
    own = config.tokenizer.path
    if own and pinned(own) != path:
        path, vocab = pinned(own), _ids(own, path, init)
        runtime["vocab"] = max(vocab, spec.vocab)
    spec = spec.model_copy(update=runtime)
    given = config.model.model_fields_set
    if config.objective.type in classifier.KINDS and "head" in given:
        spec = spec.model_copy(update={"head": config.model.head})
    for key in sorted(given):
        value = getattr(config.model, key)
        left_out = value == 0 and not isinstance(value, bool)
        if not left_out and value != getattr(spec, key):
            raise ConfigError(f"model.{key}", f"comes from init={config.init}; leave it out")
    tokenizer = config.tokenizer.model_copy(update={"path": path})
    config = config.model_copy(update={"init": init, "model": spec, "tokenizer": tokenizer})
    return classifier.labeled(config, was)


def architecture(config: RunConfig) -> ModelSpec:
    """The whole model of a configuration that `inherit` returned, before any data is read.

    Its vocabulary is that of a tokenizer that exists, which must be here, or what is asked of one
    to be trained.
    """
    vocab = config.model.vocab
    if not vocab and config.tokenizer.path:
        vocab = tokenizers.load(local(config.tokenizer.path)).vocab
    return config.model.filled(vocab=vocab or config.tokenizer.vocab, max_length=config.length)


def _ids(given: str, own: str, init: str) -> int:
    """How many ids the tokenizer at `given` has, which must extend the one of `init` at `own`."""
    new = tokenizers.load(local(given))
    try:
        old = tokenizers.load(local(own))
    except DataError:  # weights alone: only numbers can be compared
        return new.vocab
    check_extends(old, new, init)
    return new.vocab


def _pinned(config: RunConfig) -> str:
    init, folder = config.init or "", Path(config.folder)
    if is_remote(init) and steps(folder / "checkpoints") and (folder / "config.yaml").is_file():
        begun = load(str(folder / "config.yaml")).init or ""
        init = begun if is_newest(init, begun) else init
    return pinned(init)


@dataclass
class Keeper:
    """Makes, saves and restores the state of one run."""

    config: RunConfig
    layout: Layout
    optimizer: Optimizer
    mask: Mask
    checkpoints: Checkpoints
    base: Base = field(default_factory=dict, init=False)
    """What `fresh` or `restore` started from: step and digest of `init`, whose frozen part is never
    written; empty without one."""

    def fresh(self, spec: ModelSpec, warn: Callable[[str], None]) -> TrainState:
        """The state before the first step."""
        config = self.config
        if config.init:
            params, self.base = base_params(config, self.layout, None, warn)
            _keep_base(config, int(self.base["step"]), warn)
            if distributed.index() == 0:
                keep(config.init, config.folder)
        else:
            dtype = jnp.dtype(config.param_dtype)
            params = init_params(spec, self.layout, jax.random.key(config.seed), dtype)
            params = adapted(config, self.layout, params)
        live, _ = tree.partition(params, self.mask)
        opt_state = init_state(self.optimizer.tx, live, self.layout, AXES)
        return self._state(0, params, opt_state)

    def restore(
        self, spec: ModelSpec, warn: Callable[[str], None]
    ) -> tuple[TrainState, dict[str, Any]]:
        """(state, meta) of the newest good checkpoint, on this run's mesh."""
        want = shapes(self.config, spec, self.layout)
        live, _ = tree.partition(want, self.mask)
        like = self._items(want, state_shapes(self.optimizer.tx, live, self.layout, AXES))
        step, params, opt, meta = self.checkpoints.restore(*like)
        if self.config.init:
            self.base = meta["base"]
            mask = kept(self.config, want)
            frozen = frozen_params(self.config, self.layout, mask, want, self.base, warn)
            params = tree.combine(params, frozen)
        if "live" in opt:
            params = tree.combine(opt["live"], tree.partition(params, self.mask)[1])
        return self._state(step, params, opt["state"]), meta

    def check_space(self, state: TrainState) -> None:
        """Raise StorageError when the disk cannot hold two checkpoints of this state."""
        self.checkpoints.check_space(tree.nbytes(self._items(state.params, state.opt_state)))

    def save(self, state: TrainState, meta: dict[str, Any], score: float | None) -> bool:
        """Start to write the state; `meta` gets the data position and the name of the base.

        False when a value is NaN or infinite: such a state is not written.
        """
        step = int(state.step)
        meta = {**meta, "position": step * self.config.batch, "base": self.base}
        params, opt = self._items(self.evaluated(state), state.opt_state)
        if "live" in opt:
            opt["live"] = tree.partition(state.params, self.mask)[0]
        return self.checkpoints.save(step, params, opt, meta, score)

    def evaluated(self, state: TrainState) -> Params:
        """The parameters that are scored, sampled from and exported."""
        live, frozen = tree.partition(state.params, self.mask)
        return tree.combine(self.optimizer.averaged(state.opt_state, live), frozen)

    def _items(self, params: Params, opt_state: Any) -> tuple[Params, dict[str, Any]]:
        """What a checkpoint holds: the parameters to use, and all else that training needs.

        Where the parameters to use are averages, training goes on from others: `live`.
        """
        opt: dict[str, Any] = {"state": opt_state}
        if self.config.optimizer.type == "schedule_free_adamw":
            opt["live"] = tree.partition(params, self.mask)[0]
        if self.config.init:
            params, _ = tree.partition(params, kept(self.config, params))
        return params, opt

    def _state(self, step: int, params: Params, opt_state: Any) -> TrainState:
        whole = self.layout.sharding(())
        return TrainState(jax.device_put(jnp.int32(step), whole), params, opt_state)


def _keep_base(config: RunConfig, step: int, warn: Callable[[str], None]) -> None:
    """Let the run that `init` names keep the step that this one starts from, if it is a run."""
    checkpoint = Path(config.init or "") / "checkpoints" / str(step)
    if distributed.index() != 0 or not checkpoint.is_dir():
        return
    try:
        need(checkpoint, str(Path(config.folder).resolve()))
    except OSError as error:
        warn(
            f"{checkpoint} cannot be marked as needed ({error.strerror}): if its run trains on and "
            "removes it, this one is lost; copy it first"
        )
