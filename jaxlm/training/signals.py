"""SIGTERM and SIGINT: finish the step, save, exit 75. A second SIGINT leaves at once with 130."""

import json
import os
import signal
import time
from types import FrameType, TracebackType

from jaxlm.core import distributed
from jaxlm.core.errors import INTERRUPTED, STOPPED, StoppedError

SECONDS = 4.0
"""From one question among processes to the next, about: it is a round trip."""


class Signals:
    """While it is entered, the two signals ask for an end instead of causing one.

    Until `patient` is called there is nothing to save, and the first signal ends the process.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._patient = False
        self._before: dict[int, object] = {}
        self._next, self._asked = 0, (0, time.monotonic())

    def patient(self) -> None:
        """From now on a signal only sets `asked`."""
        self._patient = True

    def asked(self, step: int) -> str | None:
        """The name of the signal that asked any process to stop; all call it at the same steps.

        Several processes ask each other once in SECONDS, in steps as process 0 measures them.
        """
        if distributed.count() == 1:
            return self._name
        if step < self._next:
            return None
        now, (before, since) = time.monotonic(), self._asked
        seconds = (now - since) / max(step - before, 1)
        answers = distributed.gather("stop", json.dumps([self._name, seconds]))
        found = [json.loads(answer) for answer in answers]
        self._next = step + max(1, int(SECONDS / max(found[0][1], 1e-3)))
        self._asked = step, now
        return next((name for name, _ in found if name), None)

    def _on(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._name and number == signal.SIGINT:
            distributed.exit_now(INTERRUPTED)
        self._name = name
        if not self._patient:
            # No exception: one that is raised inside a callback of jax's is swallowed there. The
            # others are told, since they may wait for this one within the first step.
            error = StoppedError(name, "stopped before the first step; run the command again")
            os.write(2, f"jaxlm: error: {error}\n".encode())
            distributed.fail(error)
            distributed.exit_now(STOPPED)

    def __enter__(self) -> "Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._on)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
