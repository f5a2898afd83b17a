"""A trace for the JAX profiler, from one step to another."""

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jaxlm.core.errors import ConfigError


class Profiler:
    """Traces steps A to B, without B, into `folder`; does nothing when steps is None.

    A context manager: the trace is written when the block ends, by an exception too.
    """

    def __init__(self, steps: str | None, folder: str | os.PathLike[str]):
        """steps: `A:B`. Raises ConfigError when it names no step."""
        self._first, self._end = _range(steps) if steps else (0, 0)
        self._folder = Path(folder)
        self._running = False

    def at(self, step: int, wait_for: Any = None) -> None:
        """Call before each step. step: how many are done, so 0 before the first.

        wait_for: arrays of the step before, waited for where the trace starts or ends, because
        steps are dispatched ahead of the device.
        """
        if (self._first <= step < self._end) == self._running:
            return
        jax.block_until_ready(wait_for)
        if self._running:
            self.stop()
        else:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def stop(self) -> None:
        """Write the trace, if one is being taken."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def check_reached(steps: str | None, last: int) -> None:
    """Raise ConfigError when `steps`, `A:B`, begins after the `last` updates of the run."""
    if steps and (first := _range(steps)[0]) >= last:
        what = f"{steps} begins at step {first} of a run of {last}; use {last - 1}:{last} or before"
        raise ConfigError("profile.steps", what)


def _range(steps: str) -> tuple[int, int]:
    first, _, end = steps.partition(":")
    if not (first.isdigit() and end.isdigit() and int(first) < int(end)):
        what = f"{steps} names no step; write A:B with A < B, such as 10:15"
        raise ConfigError("profile.steps", what)
    return int(first), int(end)
