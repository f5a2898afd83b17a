"""Every objective with every family that it trains: a task that can be learned, and a few steps."""

import json
from functools import cache, partial

import hubs
import jax
import networks
import optax

from jaxlm import families
from jaxlm.config.load import load
from jaxlm.core.errors import ConfigError
from jaxlm.families.heads import SEQUENCE, TOKENS
from jaxlm.inference.run import trained
from jaxlm.models.transformer import make_forward
from jaxlm.objectives.kinds import SENTINELS, TRAINS, kind
from jaxlm.text.train import train
from jaxlm.training import reading
from jaxlm.training.evaluate import place
from jaxlm.training.objective import make_objective
from jaxlm.training.step import TrainState, train_step

STEPS, LENGTH, ROWS = 30, 32, 8
LETTERS = "abcdefgh"
HEADS = {"classification": SEQUENCE, "token_classification": TOKENS}
TOLD = "a", "b"
"""The labels of the tasks of classifiers."""


def _runs(count):
    """Texts of one letter each, no two alike."""
    return [LETTERS[i % 8] * (9 + i // 8) for i in range(count)]


RECORDS = {
    "text": [{"text": run} for run in _runs(96)],
    "prompt": [{"prompt": run[:4], "completion": run[:6]} for run in _runs(64)],
    "source": [{"source": run[:6], "target": run[:5]} for run in _runs(64)],
    "label": [{"text": run, "label": TOLD[run[0] > "d"]} for run in _runs(64)],
    "words": [
        {"words": [run[:2], "x", run[:3]], "tags": [TOLD[run[0] > "d"], "a", TOLD[run[0] > "d"]]}
        for run in _runs(64)
    ],
    "anchor": [{"anchor": run, "positive": run[:4]} for run in _runs(64)],
}
TASKS = {
    "sft": "prompt",
    "seq2seq": "source",
    "classification": "label",
    "token_classification": "words",
    "contrastive": "anchor",
}
"""Which records an objective learns from; the others from texts."""


def cells():
    """(objective, family) of all that go together."""
    return [(name, family) for name in TRAINS for family in families.FAMILIES if fits(name, family)]


def fits(objective, family):
    """Whether a family has a model that the objective trains."""
    try:
        return kind(spec_of(objective, family)) in TRAINS[objective]
    except ConfigError:  # no such head
        return False


def structure(family):
    """The structure of a family's models."""
    return families.find(hubs.CONFIGS[family]).spec(hubs.CONFIGS[family]).structure


@cache
def tokenizer_of(objective, structure):
    """One for letters, with the special tokens that are needed."""
    form = "encoder-decoder" if objective in SENTINELS else structure
    return train("bpe", {"encoder-decoder": 380}.get(form, 280), _runs(96) * 3, form)


def spec_of(objective, family):
    """The family's small model, with the head that the objective trains."""
    spec = families.find(hubs.CONFIGS[family]).spec(hubs.CONFIGS[family])
    vocab = tokenizer_of(objective, spec.structure).vocab
    spec = spec.model_copy(update={"vocab": vocab, "dropout": 0.0})
    if objective in HEADS:
        return families.headed(spec, HEADS[objective], len(TOLD), hubs.CONFIGS[family])
    return spec


def learned(objective, family, folder):
    """The losses of a few steps on the same rows, from random parameters."""
    path = folder / f"{objective}.jsonl"
    records = RECORDS[TASKS.get(objective, "text")]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    spec = spec_of(objective, family)
    words = f"objective.type={objective} data.train={path} data.cache={folder}/cache steps=9"
    words += f" length={LENGTH} batch={ROWS} model.structure={spec.structure}"
    told = ["objective.labels=[a, b]"] if objective in HEADS else []
    config = load(None, [*words.split(), *told]).model_copy(update={"model": spec})
    tokenizer = tokenizer_of(objective, spec.structure)
    data, _ = reading.read(config, tokenizer, lambda line: None)
    layout = networks.layout()
    params = networks.params(spec, layout)
    tx = optax.adam(5e-3)
    mask = trained(config, params)
    step = partial(
        train_step,
        forward=make_forward(spec, layout, "float32"),
        objective=make_objective(config, layout, tokenizer),
        tx=tx,
        trainable=mask,
        microbatches=1,
    )
    live = {name: leaf for name, leaf in networks.tree.flatten(params).items() if name in mask}
    state = TrainState(jax.numpy.int32(0), params, tx.init(networks.tree.unflatten(live)))
    batch, run = place(data, layout, ROWS)(0), jax.jit(step)
    losses = []
    for _ in range(STEPS):
        state, metrics = run(state, batch, networks.ROOT)
        losses.append(float(metrics["loss"] / metrics["weight"]))
    return losses
