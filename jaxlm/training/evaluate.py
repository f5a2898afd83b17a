"""Scores on the validation data: the loss, and the columns of the objective."""

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxlm.config.objectives import Contrastive
from jaxlm.config.schema import RunConfig
from jaxlm.core.errors import DataError
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.core.tree import Params
from jaxlm.data import files, sources
from jaxlm.data.pipeline import Dataset
from jaxlm.data.records import READERS, is_saved
from jaxlm.inference.run import compute_dtype, load_params, open_run
from jaxlm.models.transformer import make_forward
from jaxlm.objectives.base import Batch, Objective, Sums
from jaxlm.training import confusion, reading
from jaxlm.training.objective import make_objective
from jaxlm.training.step import eval_step

Score = Callable[[Params, Batch], Sums]
Gauge = Callable[[int, Params, Callable[[], None]], dict[str, float]]
"""(step, parameters, what to call after each batch) -> columns of the step's row of metrics."""


def place(dataset: Dataset, layout: Layout, size: int, limit: int | None = None) -> Any:
    """step -> global batch of `size` rows [B, L] on the mesh; a process reads only its own rows."""
    sharding = layout.sharding(("batch", None))
    mine = sharding.addressable_devices_indices_map((size, dataset.length)).values()
    spans = [index[0].indices(size) for index in mine if index]
    first, last = min(s[0] for s in spans), max(s[1] for s in spans)

    def batch(step: int) -> dict[str, Array]:
        rows = dataset.batch(step, size, slice(first, last), limit)

        def shard(array: np.ndarray) -> Array:
            def piece(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(size)
                return array[start - first : stop - first]

            return jax.make_array_from_callback((size, array.shape[1]), sharding, piece)

        return {name: shard(array) for name, array in rows.items()}

    return batch


def make_score(forward: Any, objective: Objective) -> Score:
    """The compiled evaluation step."""
    return jax.jit(partial(eval_step, forward=forward, objective=objective))


def totals(
    params: Params,
    dataset: Dataset,
    score: Score,
    layout: Layout,
    *,
    size: int,
    batches: int,
    beat: Callable[[], None] = lambda: None,
) -> Sums:
    """The sums of the first `batches` batches, as numpy arrays of float64.

    score: as `make_score` gives it. beat: called after each batch.
    """
    batch = place(dataset, layout, size)
    total: Any = Sums(0.0, 0.0, {}, {})  # pyright: ignore[reportArgumentType]
    for step in range(min(batches, dataset.batches(size))):
        found = score(params, batch(step))._replace(auxiliary={})
        found = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(found))
        total = jax.tree.map(np.add, total, found) if step else found
        beat()
    return total


def columns(total: Sums, objective: Objective) -> dict[str, float]:
    """The mean loss (nats), and what the objective scores."""
    loss, weight = float(total.loss), float(total.weight)
    mean = {"loss": loss / weight if weight else math.nan}
    return mean | objective.scores(loss, weight, total.extra)


def validation(
    held: Dataset,
    forward: Any,
    objective: Objective,
    layout: Layout,
    *,
    size: int,
    batches: int,
    told: Callable[[int, Sums], None] = lambda step, total: None,
) -> Gauge:
    """The mean loss and the scores, in columns that begin with validation_.

    told: of each step's sums.
    """
    score = make_score(forward, objective)

    def gauge(step: int, params: Params, beat: Callable[[], None]) -> dict[str, float]:
        given = params, held, score, layout
        total = totals(*given, size=size, batches=batches, beat=beat)
        told(step, total)
        found = columns(total, objective)
        return {f"validation_{name}": value for name, value in found.items()}

    return gauge


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def check_found(wanted: Sequence[sources.Source]) -> None:
    """Raise DataError naming every path of a run's data that leads nowhere from here."""
    gone = []
    for source in wanted:
        try:
            if not is_saved(source.path) and not files.is_tokens(source.path):
                files.find(source.path, (*sources.FORMATS, *READERS))
        except files.NotFoundError:
            gone.append(source.path)
    if gone:
        raise DataError(
            ", ".join(gone),
            f"not found from {Path.cwd()}; run `jaxlm eval` in the folder where the run was "
            "started, or put the files there",
        )


def _devices(config: RunConfig) -> list[Any]:
    """Those to score on: all, but of rows that are compared with each other no more than the batch
    splits over, so that a score is the same on any.
    """
    devices = jax.devices()
    whole = isinstance(config.objective, Contrastive)
    return devices[: math.gcd(config.batch, len(devices))] if whole else devices


def evaluate_run(
    run_dir: str | Path, batches: int | None = None, say: Callable[[str], None] = _say
) -> dict[str, Any]:
    """Score the newest good checkpoint of a run on its validation data, on all devices here.

    batches: at most so many, all of them by default. say: told of long work and of what is wrong;
    stderr by default. Returns step, loss and the objective's columns: of a language model
    perplexity, accuracy, bits_per_byte and tokens; of labels what confusion.tables has too, which
    is written into the run's folder where all batches were scored. Raises DataError when the run
    holds nothing out or its files are not here, CheckpointError as loading does.
    """
    run = open_run(run_dir)
    config = run.config
    if config.data.validation is None:
        raise DataError("data.validation", "the run holds nothing out; set it and train again")
    layout = Layout(make_mesh({"fsdp": -1}, _devices(config)))
    own = config.data.validation
    check_found(own if isinstance(own, tuple) else config.data.train)
    held = reading.read_validation(config, run.tokenizer, say)
    assert held is not None
    step, params = load_params(run, layout, warn=say)
    shards = layout.size("batch")
    size = -(-config.batch // shards) * shards
    dtype = compute_dtype(config.compute_dtype)
    forward = make_forward(run.spec, layout, dtype)
    objective = make_objective(config, layout, run.tokenizer)
    score, most = make_score(forward, objective), batches or held.batches(size)
    total = totals(params, held, score, layout, size=size, batches=most)
    if (found := confusion.tables(config, total.extra)) and batches is None:
        try:
            confusion.write(run.folder, step, found)
        except OSError as error:  # of a run that may only be read
            say(f"{run.folder / confusion.FILE}: not written ({error.strerror})")
    return {"step": step, **columns(total, objective), **found}
