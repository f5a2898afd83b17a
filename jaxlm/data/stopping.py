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
    asked = "signal"

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = signal.Signals(number).name
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        for worker in multiprocessing.active_children():
            worker.kill()
        raise KeyboardInterrupt(asked)

    try:
        for number in SIGNALS:
            signal.signal(number, stop)
        yield
    except StoppedError as told:
        raise StoppedError(asked, told.what) from told
    except KeyboardInterrupt as end:
        raise StoppedError(asked, "stopped; run the same line again to go on") from end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
