"""What a run scores besides its loss: what it holds out, general text, answers to prompts."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from jaxlm.config.objectives import HEADLESS
from jaxlm.config.schema import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout
from jaxlm.core.tree import Mask
from jaxlm.data.asked import Asked
from jaxlm.data.general import general
from jaxlm.data.pipeline import Dataset
from jaxlm.models import lora
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import Forward
from jaxlm.objectives.base import Objective, Sums
from jaxlm.objectives.divergence import Base
from jaxlm.text.tokenizer import Tokenizer
from jaxlm.training import confusion, samples
from jaxlm.training.answers import answering
from jaxlm.training.evaluate import Gauge, validation
from jaxlm.training.forgetting import forgetting
from jaxlm.training.samples import Say, sampling


class Texts(NamedTuple):
    """What is read for them."""

    held: Dataset | None
    general: Dataset | None
    prompts: list[Asked]


def read(config: RunConfig, spec: ModelSpec, tokenizer: Tokenizer, held: Dataset | None) -> Texts:
    """The texts of a run's gauges: general ones where it has an `init` that continues texts.

    Raises ConfigError and DataError for what cannot be read or asked, and ConfigError for
    max_forgetting where nothing is scored.
    """
    source = config.evaluate.general if config.init else None
    continues = spec.structure == "decoder" and not spec.head.labels
    continues &= config.objective.type not in HEADLESS
    rows = general(source, tokenizer, config.length) if source and continues else None
    if rows is None and config.evaluate.max_forgetting is not None:
        what = "no general text is scored: this model does not continue texts; leave it out"
        raise ConfigError("evaluate.max_forgetting", what)
    return Texts(held, rows, samples.read(config, tokenizer, spec))


def base_beside(mask: Mask) -> Base | None:
    """From parameters to those of the base, with adapters alone; else None."""
    return lora.begun if all("/lora_" in name for name in mask) else None


def make(
    config: RunConfig,
    texts: Texts,
    tokenizer: Tokenizer,
    layout: Layout,
    forward: Forward,
    objective: Objective,
    folder: Path,
    say: Say,
    *,
    spec: ModelSpec,
    base: Base | None,
) -> tuple[Gauge, ...]:
    """The gauges that have something to read. base: as `base_beside` gives it.

    Raises ConfigError and DataError for answers that cannot be marked as is asked.
    """
    found: list[Gauge] = []
    if texts.held is not None:
        parts = 1 if objective.whole else config.microbatches  # which compares as many rows
        size, most = config.batch // parts, config.evaluate.batches * parts
        held = texts.held, forward, objective, layout
        told = partial(_tell, config, folder)
        found.append(validation(*held, size=size, batches=most, told=told))
    if texts.general is not None:
        found.append(forgetting(texts.general, forward, layout, folder, base=base))
    if texts.prompts:
        answer = answering(config.samples, forward, spec, tokenizer, shards=layout.size("batch"))
        found.append(sampling(config, texts.prompts, answer, folder, say))
    return tuple(found)


def _tell(config: RunConfig, folder: Path, step: int, total: Sums) -> None:
    """Keep what an evaluation says of each label."""
    if found := confusion.tables(config, total.extra):
        confusion.write(folder, step, found)
