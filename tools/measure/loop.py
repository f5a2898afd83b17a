"""The training loop and its own compiled step, in turn within one run."""

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.config.schema import RunConfig
from jaxlm.observe.goodput import Clock
from jaxlm.observe.progress import Progress
from jaxlm.training.assemble import assemble
from jaxlm.training.loop import Loop
from jaxlm.training.signals import Signals
from jaxlm.training.watchdog import Watchdog
from measure.corpus import tokenizer

Clocks = np.ndarray


class Turns:
    """Stands where the loop has its compiled step. Every `steps` calls it does as many by itself.

    The loop's turn lasts from the end of a bare one until its last step is done, so it holds all
    that the loop does between steps: data, sums, rows of metrics.jsonl, the progress line.
    """

    def __init__(self, compiled: Any, steps: int):
        self._compiled, self._steps = compiled, steps
        self._calls, self._start = 0, _clocks()
        self.loop: list[Clocks] = []
        self.bare: list[Clocks] = []

    def __call__(self, state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        """The loop's step, and after the last of its turn a bare turn."""
        state, metrics = self._compiled(state, batch, key)
        self._calls += 1
        if self._calls % self._steps:
            return state, metrics
        jax.block_until_ready(state)
        start = _clocks()
        self.loop.append(start - self._start)
        for _ in range(self._steps):
            state, metrics = self._compiled(state, batch, key)
        jax.block_until_ready(state)
        self._start = _clocks()
        self.bare.append(self._start - start)
        return state, metrics


class MeasuredLoop(Loop):
    """The loop whose step takes turns with it."""

    steps = 1
    turns: Turns

    def _compile(self, batch: dict[str, Any]) -> Turns:
        self.turns = Turns(super()._compile(batch), self.steps)
        return self.turns


def _clocks() -> Clocks:
    return np.array([time.perf_counter(), time.process_time()])


def take_turns(shape: dict[str, Any], rounds: int, steps: int) -> tuple[Clocks, Clocks]:
    """The loop's turns and the bare ones, [rounds, 2] each: seconds, and CPU seconds of every
    thread, of `steps` steps.
    """
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "run"
        folder.mkdir()
        tokenizer(Path(root))
        config = _config(shape, Path(root), steps * (rounds + 1))
        with (
            Signals() as signals,
            Progress(folder, name="bench", steps=0, primary=True) as voice,
            Watchdog(config.watchdog) as watchdog,
        ):
            config.watch()
            run = assemble(config, folder, voice)
            clock = Clock(folder, primary=True)
            loop = MeasuredLoop(run, voice, signals, watchdog, clock, other_data=False)
            loop.steps = steps
            loop.run()
    # The first of each warms up.
    return np.stack(loop.turns.loop[1:]), np.stack(loop.turns.bare[1:])


def _config(shape: dict[str, Any], root: Path, steps: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "bench",
            "run_dir": str(root / "run"),
            "steps": steps,
            "batch": shape["batch"],
            "length": shape["length"],
            "compute_dtype": shape["dtype"],
            "model": shape["model"],
            "data": {"train": "stdlib", "cache": str(root / "cache")},
            "tokenizer": {"path": str(root / "tokenizer")},
            "checkpoint": {"every": 0},
            "log": {"every": 1},
        }
    )
