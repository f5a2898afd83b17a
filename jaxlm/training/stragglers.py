"""Which process the others wait for, from the time that each spends on work of its own.

A step ends for all at once, when the slowest has done its part, so its length tells nothing. What
differs is where a process was meanwhile: at work for itself (reading rows, or held up by its host)
or waiting for the step. A device that computes slower than others is not seen by this.
"""

import socket
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jax.experimental import multihost_utils

from jaxlm.core import distributed

SHARE = 0.1
"""Of a window's seconds, that a process works longer than the others before it is named."""
WINDOWS = 2
"""In a row that it takes to be named, or to be said to keep up again."""


class Spent(NamedTuple):
    """Seconds of one process in a window of steps."""

    whole: float
    own: float
    """Not spent waiting for a step."""
    data: float
    """Of its own, spent waiting for rows."""


class Stragglers:
    """Says, on process 0, who is slow, and when that is over."""

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn
        self._found: list[int | None] = []
        self._named: int | None = None
        self._hosts = distributed.gather("host", socket.gethostname())

    def window(self, spent: Spent) -> None:
        """What this process spent; all call it at the same steps. Nothing for one alone."""
        if distributed.count() == 1:
            return
        row = np.array(spent, np.float32)
        rows = [Spent(*map(float, each)) for each in multihost_utils.process_allgather(row)]
        slow = slowest([each.own for each in rows], spent.whole)
        self._found = [*self._found, slow][-WINDOWS:]
        if len(self._found) < WINDOWS or len(set(self._found)) > 1 or slow == self._named:
            return
        self._named, before = slow, self._named
        if before is not None:
            self._warn(f"process {before} ({self._hosts[before]}) keeps up again")
        if slow is None:
            return
        others = statistics.median(each.own for i, each in enumerate(rows) if i != slow)
        self._warn(
            f"process {slow} ({self._hosts[slow]}) is what the others wait for: of the last "
            f"{rows[slow].whole:.1f} s it needed {rows[slow].own:.1f} s for itself, "
            f"{rows[slow].data:.1f} s of them for data; the others {others:.1f} s"
        )


def slowest(own: Sequence[float], whole: float) -> int | None:
    """The process whose own seconds are more than the others' by SHARE of the `whole` window."""
    slow = max(range(len(own)), key=own.__getitem__)
    others = statistics.median([*own[:slow], *own[slow + 1 :]])
    return slow if own[slow] - others > SHARE * whole else None
