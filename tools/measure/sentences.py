"""Short texts in rows: packed, padded to the longest of all, to that of the batch, in buckets.

Examples a second of full updates. The texts are those of a file of `text<TAB>label`, or, where none
is given, first paragraphs of docstrings of the standard library.
"""

import csv
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.load import load
from jaxlm.config.schema import RunConfig
from jaxlm.core import tree
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.data import files
from jaxlm.data.pipeline import BUCKETS, MULTIPLE, Dataset
from jaxlm.data.signatures import signatures
from jaxlm.models.axes import AXES
from jaxlm.models.transformer import init_params, make_forward
from jaxlm.text.tokenizer import Tokenizer
from jaxlm.text.train import train
from jaxlm.training import optim, reading
from jaxlm.training.objective import make_objective
from jaxlm.training.step import TrainState, train_step
from measure.jax_side import OPTIMIZER
from measure.pipe import Answer

MODES = ("packed", "longest", "batch", "buckets")
Batch = dict[str, np.ndarray]


def sentences(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Examples a second by objective and mode, in turn, and how many times those padded to the
    longest of all. steps: batches of shape["batch"] examples in a turn.
    """
    found: Answer = {}
    per_round: Answer = {}
    with tempfile.TemporaryDirectory() as root:
        texts = _texts(shape.get("texts"))
        tokenizer = train("bpe", shape["model"]["vocab"], [text for text, _ in texts], "encoder")
        for objective in ("mlm", "classification"):
            sides = Sides(shape, objective, _written(texts, objective, Path(root)), tokenizer)
            rates = sides.rates(rounds, steps)
            for mode in MODES:
                found[f"examples_per_second_{objective}_{mode}"] = statistics.median(rates[mode])
            ratios = [a / b for a, b in zip(rates["packed"], rates["longest"], strict=True)]
            found[f"ratio_{objective}"] = statistics.median(ratios)
            per_round[objective] = rates
    longest = max(len(tokenizer.encode(text)) for text, _ in texts)
    mean = statistics.mean(len(tokenizer.encode(text)) for text, _ in texts)
    return {**found, "texts": len(texts), "longest": longest, "mean": mean, "per_round": per_round}


class Sides:
    """The batches of every mode, and the compiled step that takes them."""

    def __init__(self, shape: dict[str, Any], objective: str, words: list[str], own: Tokenizer):
        self._size, self._own = shape["batch"], own
        longest = shape["longest"]
        model = [f"model.{name}={json.dumps(value)}" for name, value in shape["model"].items()]
        key = "examples.packing" if objective == "classification" else "objective.rows"
        no, yes = ("false", "true") if objective == "classification" else ("padded", "packed")
        config = partial(self._config, [*words, *model])
        self._config_ = config(f"length={longest}", f"{key}={no}")
        self._padded = self._read(self._config_)
        self._packed = self._read(config(f"length={shape['length']}", f"{key}={yes}"))

    def rates(self, rounds: int, steps: int) -> dict[str, list[float]]:
        """Examples a second, a figure of each round; every mode is run once before."""
        batches = {mode: list(getattr(self, f"_{mode}_batches")(steps)) for mode in MODES}
        run = self._step()
        found: dict[str, list[float]] = {mode: [] for mode in MODES}
        for number in range(rounds + 1):
            for mode in MODES:
                start = time.perf_counter()
                run(batches[mode])
                seconds = time.perf_counter() - start
                if number:
                    found[mode].append(sum(map(_examples, batches[mode])) / seconds)
        return found

    def _config(self, words: list[str], *more: str) -> RunConfig:
        config = load(None, [*words, *more, "steps=1", f"batch={self._size}"])
        spec = config.model.filled(vocab=self._own.vocab, max_length=512)
        return config.model_copy(update={"model": spec})

    def _read(self, config: RunConfig) -> Dataset:
        return reading.read(config, self._own, lambda line: None)[0]

    def _packed_batches(self, steps: int) -> Iterator[Batch]:
        """Rows with about as many examples in a batch."""
        each = np.mean([_examples(self._packed.batch(step, 1)) for step in range(32)])
        rows = max(1, round(self._size / float(each)))
        return (self._packed.batch(step, rows) for step in range(steps))

    def _batch_batches(self, steps: int) -> Iterator[Batch]:
        return (self._padded.batch(step, self._size) for step in range(steps))

    def _longest_batches(self, steps: int) -> Iterator[Batch]:
        source = self._padded.sources[0]
        for step in range(steps):
            index = np.arange(step * self._size, (step + 1) * self._size) % source.count
            yield source.take(index, index)

    def _buckets_batches(self, steps: int) -> Iterator[Batch]:
        """Texts of a like length together, batches in random order."""
        source = self._padded.sources[0]
        sizes = [source.widths(np.array([i]))["tokens"] for i in range(source.count)]
        order = np.argsort(sizes, kind="stable")
        starts = range(0, source.count - self._size + 1, self._size)
        for start in np.random.default_rng(0).permutation(starts)[:steps]:
            index = order[start : start + self._size]
            whole, widths = source.take(index, index), source.widths(index)
            yield {
                name: array[:, : _rounded(widths[name], array.shape[1])]
                if name in widths
                else array
                for name, array in whole.items()
            }

    def _step(self) -> Any:
        config, layout = self._config_, Layout(make_mesh({"fsdp": 1}, jax.devices()[:1]))
        params = init_params(config.model, layout, jax.random.key(0), jnp.float32)
        optimizer = optim.build(OPTIMIZER, params, steps=1000, axes=AXES)
        step = partial(
            train_step,
            forward=make_forward(config.model, layout, jnp.float32),
            objective=make_objective(config, layout, self._own),
            tx=optimizer.tx,
            trainable=tree.select(params, (".",)),
            microbatches=1,
        )
        jitted, key = jax.jit(step, donate_argnums=0), jax.random.key(0)
        opt_state = optim.init_state(optimizer.tx, params, layout, AXES)
        held = [TrainState(jnp.int32(0), params, opt_state)]

        def run(batches: list[Batch]) -> None:
            for batch in batches:
                held[0], _ = jitted(held[0], batch, key)
            jax.block_until_ready(held[0].params)

        return run


def _rounded(width: int, most: int) -> int:
    unit = max(MULTIPLE, -(-most // BUCKETS))
    return min(most, -(-width // unit) * unit)


def _examples(batch: Batch) -> int:
    return int(batch["segments"].max(1).sum())


def _texts(path: str | None) -> list[tuple[str, str]]:
    """(text, label) of a file, or of docstrings: whether they speak of a return."""
    if path:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            return [(row[0], row[1]) for row in rows if row[0].strip()]
    records = (record for file in files.find("stdlib", ()) for _, record in signatures(file))
    said = [record["prompt"].strip() for record in records]
    return [(text, "yes" if "eturn" in text else "no") for text in said]


def _written(texts: list[tuple[str, str]], objective: str, root: Path) -> list[str]:
    """The texts as a file, and the words of a configuration that name it."""
    path = root / f"{objective}.jsonl"
    lines = [json.dumps({"text": text, "label": label}) for text, label in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = [f"objective.type={objective}", f"data.train={path}", f"data.cache={root}/cache"]
    if objective == "classification":
        labels = sorted({f'"{label}"' for _, label in texts})
        words.append(f"objective.labels=[{', '.join(labels)}]")
        head = {"labels": len(labels), "pool": "first", "bias": True}
        words.append(f"model.head={json.dumps(head)}")
    return words
