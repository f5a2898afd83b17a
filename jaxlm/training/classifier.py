"""The head of a model that is to score labels: its family's, on a model that came with another."""

from jaxlm import families
from jaxlm.config.schema import RunConfig
from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.core.tree import Mask, Params
from jaxlm.families.heads import SEQUENCE, TOKENS, head_of
from jaxlm.inference import head
from jaxlm.inference.origin import Origin, origin
from jaxlm.models.spec import Head, ModelSpec

KINDS = {"classification": SEQUENCE, "token_classification": TOKENS}
"""The kind of head that an objective needs; others take the one that is there."""


def labeled(config: RunConfig, was: Origin) -> RunConfig:
    """The configuration with the labels and the problem that `init` has, unless it has its own."""
    given = config.objective
    if given.type not in KINDS or given.labels or head_of(was.spec) != KINDS[given.type]:
        return config
    if was.labels.problem and "problem" not in given.model_fields_set:
        given = given.model_copy(update={"problem": was.labels.problem})
    return config.model_copy(update={"objective": given.labeled(was.labels.names)})


def headed(config: RunConfig) -> RunConfig:
    """The configuration of a run whose labels are known, with the head that scores them.

    Of a run from scratch what `model.head` says stays; with `init` its own head, if it scores the
    same labels. Beside adapters a new head is trained whole. Raises ConfigError for
    a model that has no such head, and for a `model.head` that scores something else.
    """
    kind, count = KINDS.get(config.objective.type), len(getattr(config.objective, "labels", ()))
    if kind is None:
        return config
    if not config.init:
        return config.model_copy(update={"model": _with_own(config, kind, count)})
    was, given = origin(config.init), config.model.head
    spec = config.model.model_copy(update={"head": was.spec.head})
    if head_of(was.spec) != kind or was.spec.head.labels != count:
        spec = families.headed(spec, kind, count, was.config)
    if given not in (Head(), was.spec.head, spec.head):
        raise ConfigError("model.head", f"comes from init={config.init}; leave it out")
    config = config.model_copy(update={"model": spec})
    its = config.lora
    if head.same(was, config) or not its.rank or "head" in its.save:
        return config
    return config.model_copy(update={"lora": its.model_copy(update={"save": (*its.save, "head")})})


def _with_own(config: RunConfig, kind: str, count: int) -> ModelSpec:
    """The model of a run from scratch."""
    model, own = config.model, config.model.head
    filled = model.filled(vocab=model.encoder.start + 1, max_length=config.length)
    usual = families.headed(filled.model_copy(update={"head": Head()}), kind, count).head
    made = usual.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})
    if made.labels != count:
        what = f"{made.labels} is not how many there are: {count}; leave it out"
        raise ConfigError("model.head.labels", what)
    if (made.pool == "none") != (kind == TOKENS):
        what = f"{made.pool} is not for {kind}; leave it out"
        raise ConfigError("model.head.pool", what)
    return model.model_copy(update={"head": made})


def new_leaves(config: RunConfig, params: Params) -> list[str]:
    """The leaves of the head that `init` lacks: they begin at random."""
    if not config.init:
        return []
    return head.new(origin(config.init), config, tree.flatten(params))


def check_trained(config: RunConfig, params: Params, mask: Mask) -> None:
    """Raise ConfigError where a part of a head that `init` lacks would stay as it begins."""
    if not new_leaves(config, params):
        return
    own = [name for name in tree.flatten(params) if name.startswith("head/")]
    if left := [name for name in own if name not in mask]:
        what = f"leaves out {left[0]}, of a head that init={config.init} lacks; add head to it"
        raise ConfigError("trainable", what)
