"""A run that stands still says where, and ends with exit code 124 instead of waiting for ever."""

import faulthandler
import os
import threading
import time
from contextlib import ExitStack
from types import TracebackType

from jaxlm.core import distributed
from jaxlm.core.errors import WATCHDOG, WatchdogError


class Watchdog:
    """While it is entered, `beat` must be called at least every `seconds`.

    A device, a collective or a file system that hangs raises nothing: the stacks of all threads are
    written to stderr, then one line, and all processes end at once, so that a scheduler starts them
    again from the last checkpoint. A process that waits for one that hangs may notice first: each
    shows its own stacks and its own last step, and the one that is behind is the one to look at.
    """

    def __init__(self, seconds: float):
        self._seconds, self._last = seconds, time.monotonic()
        self._step: int | None = None
        self._end, self._stack = threading.Event(), ExitStack()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, step: int | None = None) -> None:
        """Something was finished, or the update number `step` was begun."""
        self._last = time.monotonic()
        self._step = self._step if step is None else step

    def _watch(self) -> None:
        while not self._end.wait(self._seconds / 10):
            if time.monotonic() - self._last > self._seconds:
                what = f"nothing was finished for {self._seconds:g} s, at {self._where()}"
                what += "; see the stacks above, and run the same command to continue"
                distributed.abort(WatchdogError("watchdog", what))

    def _where(self) -> str:
        return "the start" if self._step is None else f"step {self._step}"

    def _show(self, code: int, line: str) -> None:
        if code == WATCHDOG:
            faulthandler.dump_traceback(all_threads=True)
            os.write(2, f"jaxlm: {distributed.name()} is at {self._where()}\n".encode())

    def __enter__(self) -> "Watchdog":
        self.beat()
        self._stack.enter_context(distributed.last_word(self._show))
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
        self._stack.close()
