"""A run that stands still says where, and ends with exit code 124 instead of waiting for ever."""

import faulthandler
import os
import threading
import time
from types import TracebackType

from jaxlm.core import distributed
from jaxlm.core.errors import WATCHDOG


class Watchdog:
    """While it is entered, `beat` must be called at least every `seconds`.

    A device, a collective or a file system that hangs raises nothing: the stacks of all threads are
    written to stderr, then one line, and the process ends at once, so that a scheduler starts it
    again from the last checkpoint.
    """

    def __init__(self, seconds: float):
        self._seconds, self._last = seconds, time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Something was finished."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._end.wait(self._seconds / 10):
            if time.monotonic() - self._last > self._seconds:
                faulthandler.dump_traceback(all_threads=True)
                line = (
                    f"jaxlm: error: watchdog: nothing was finished for {self._seconds:g} s, see "
                    "the stacks above; run the same command to continue\n"
                )
                os.write(2, line.encode())
                distributed.exit_now(WATCHDOG)

    def __enter__(self) -> "Watchdog":
        self.beat()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
