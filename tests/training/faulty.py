"""`jaxlm` where the rows of process 1 have a fault: `faulty.py FAULT STEP words ...`.

slow: each row comes late; hang: that of STEP never comes; raise: reading it fails; early: a signal
comes when the others may be in the first step.
"""

import os
import signal
import sys
import threading
import time

from jaxlm import cli
from jaxlm.core import distributed
from jaxlm.training import loop

FAULT, STEP = sys.argv[1], int(sys.argv[2])
WHOLE, PATIENT = loop.prefetch, loop.Signals.patient


def prefetch(fn, first, last):
    def faulty(step):
        if distributed.index() == 1 and step >= STEP:
            if FAULT == "slow":
                time.sleep(0.2)
            if FAULT == "hang":
                threading.Event().wait()
            if FAULT == "raise":
                raise RuntimeError("the shelf fell over")
        return fn(step)

    return WHOLE(faulty, first, last, 1)


def patient(signals):
    if distributed.index() == 1 and FAULT == "early":
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
    PATIENT(signals)


if __name__ == "__main__":
    loop.Signals.patient = patient
    loop.prefetch = prefetch
    cli.main(sys.argv[3:])
