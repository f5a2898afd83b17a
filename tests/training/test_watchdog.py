"""A process that stands still ends with 124 and says where; one that works does not."""

import socket
import subprocess
import sys

from jaxlm.core import errors

PROGRAM = """
import time
from jaxlm.training.watchdog import Watchdog
def stands_still():
    time.sleep(600)
with Watchdog(1.0) as dog:
    for _ in range(20):
        time.sleep(0.1)
        dog.beat()
    dog.beat(7)
    {then}
"""


def _run(then):
    code = PROGRAM.format(then=then)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_a_process_that_stands_still_says_where_and_ends():
    ended = _run("stands_still()")
    assert ended.returncode == errors.WATCHDOG
    assert "stands_still" in ended.stderr
    what = "watchdog: nothing was finished for 1 s, at step 7; see the stacks above, "
    line = f"jaxlm: error: {socket.gethostname()}: {what}"
    assert ended.stderr.splitlines()[-1].startswith(line)


def test_a_process_that_works_is_left_alone():
    ended = _run("print('done')")
    assert ended.returncode == 0 and ended.stdout == "done\n" and not ended.stderr
