"""SIGTERM and Ctrl-C while documents are tokenized: an end with all that is done, not a death."""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jaxlm.core.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopping() -> Iterator[None]:
    """While it is entered, the first of SIGNALS ends the workers and raises StoppedError.

    On its way it is a KeyboardInterrupt, which no reader takes for a fault of its file, and which
    removes what is half written. A second SIGINT is for whoever had it before. Of the main thread.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        for worker in multiprocessing.active_children():
            worker.kill()
        raise KeyboardInterrupt(signal.Signals(number).name)

    try:
        for number in SIGNALS:
            signal.signal(number, stop)
        yield
    except KeyboardInterrupt as asked:
        raise StoppedError(str(asked), "stopped; run the same line again to go on") from asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
