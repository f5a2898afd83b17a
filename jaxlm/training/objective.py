"""From a configuration to the objective of a run."""

from functools import partial

from jaxlm.config.objectives import (
    Classification,
    Clm,
    Contrastive,
    Labels,
    Sft,
    TokenClassification,
)
from jaxlm.config.schema import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout
from jaxlm.models.embedding import embedding, pooling
from jaxlm.models.spec import ModelSpec
from jaxlm.objectives import classify
from jaxlm.objectives.base import Objective
from jaxlm.objectives.contrastive import contrastive
from jaxlm.objectives.divergence import Base
from jaxlm.objectives.kinds import TRAINS, fitting, kind
from jaxlm.objectives.lm import language_model
from jaxlm.text.tokenizer import Tokenizer


def make_objective(
    config: RunConfig, layout: Layout, tokenizer: Tokenizer | None, base: Base | None = None
) -> Objective:
    """The run's objective. tokenizer: for bits per byte, which evaluations have. base: from
    parameters to those of the base, where they are there.
    """
    chosen, shards = config.objective, layout.size("batch")
    if isinstance(chosen, Labels):
        return _classifier(chosen)
    if isinstance(chosen, Contrastive):
        return contrastive(
            embed=partial(embedding, how=pooling(chosen.pool, config.model)),
            temperature=chosen.temperature,
            symmetric=chosen.symmetric,
        )
    if isinstance(chosen, Clm | Sft):
        return language_model(
            z_loss=chosen.z_loss,
            shards=shards,
            token_bytes=tokenizer.token_bytes() if tokenizer else None,
            kl_to_base=chosen.kl_to_base,
            base=base,
        )
    return language_model(z_loss=chosen.z_loss, shards=shards)


def _classifier(chosen: Classification | TokenClassification) -> Objective:
    if chosen.type == "classification" and chosen.problem != "single":
        return classify.multi(chosen.labels) if chosen.problem == "multi" else classify.regression()
    weights = chosen.class_weights
    assert weights != "balanced"  # they are numbers once the labels are counted
    return classify.single(
        chosen.labels,
        words=chosen.type == "token_classification",
        smoothing=chosen.label_smoothing,
        class_weights=weights,
    )


def check_base(config: RunConfig, base: Base | None) -> None:
    """Raise ConfigError for a divergence from a base that is not there while training."""
    chosen = config.objective
    if isinstance(chosen, Clm | Sft) and chosen.kl_to_base and not base:
        what = "needs the base beside what is tuned; train adapters alone: lora.rank=16"
        raise ConfigError("objective.kl_to_base", f"{what}, no lora.save, no trainable")


def check_fits(name: str, spec: ModelSpec) -> None:
    """Raise ConfigError, with what would fit, for an objective that does not train such a model."""
    if kind(spec) in TRAINS[name]:
        return
    have = _a(kind(spec)) if spec.head.labels else f"a model of structure={spec.structure}"
    others = " or ".join(fitting(spec))
    advice = f"; objectives for it: {others}" if others else ""
    what = f"{name} does not train {have} but {_a(' or '.join(TRAINS[name]))}{advice}"
    raise ConfigError("objective.type", what)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
