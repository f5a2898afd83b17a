"""SIGTERM and SIGINT: finish the step, save, exit 75. A second SIGINT leaves at once with 130."""

import os
import signal
from types import FrameType, TracebackType

from jaxlm.core import distributed
from jaxlm.core.errors import INTERRUPTED, STOPPED

EVERY = 8
"""Steps from one question among processes to the next."""


class Signals:
    """While it is entered, the two signals ask for an end instead of causing one.

    Until `patient` is called there is nothing to save, and the first signal ends the process.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._patient = False
        self._before: dict[int, object] = {}

    def patient(self) -> None:
        """From now on a signal only sets `asked`."""
        self._patient = True

    def asked(self, step: int) -> str | None:
        """The name of the signal that asked any process to stop; all call it at the same steps.

        Several processes ask each other at every EVERY-th step only: it is a round trip.
        """
        if distributed.count() > 1 and step % EVERY:
            return None
        named = distributed.gather("stop", self._name or "")
        return next((name for name in named if name), None)

    def _on(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._name and number == signal.SIGINT:
            distributed.exit_now(INTERRUPTED)
        self._name = name
        if not self._patient:
            # No exception: one that is raised inside a callback of jax's is swallowed there.
            line = f"jaxlm: error: {name}: stopped before the first step; run the command again\n"
            os.write(2, line.encode())
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
