"""A job of several processes on this machine: what a cluster will run, or all GPUs of a host."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from jaxlm.core.errors import CLUSTER, DONE, STOPPED
from jaxlm.core.job import COORDINATOR, PROCESS, PROCESSES

GRACE = 10.0
"""Seconds for the others to end by themselves once one has failed, and again after SIGTERM."""
_PARENT_DEATH = 1  # prctl(2): PR_SET_PDEATHSIG


def run(words: Sequence[str], count: int, cpu_devices: int | None = None) -> int:
    """Run `jaxlm WORDS` in `count` processes of one job; return the code of the first to fail.

    cpu_devices: so many devices each on the CPU, instead of sharing the GPUs that are here. A
    signal to this process reaches all. When one fails, none is left behind.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = dict(os.environ) | {COORDINATOR: address, PROCESSES: str(count)}
    if cpu_devices is not None:
        flags = f"--xla_force_host_platform_device_count={cpu_devices}"
        shared["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        shared["JAX_PLATFORMS"] = "cpu"
    started: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for process in started:
            if process.poll() is None and not (number == signal.SIGINT and sys.stdin.isatty()):
                process.send_signal(number)  # a terminal sends SIGINT to all by itself

    before = {one: signal.signal(one, forward) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        for index in range(count):
            started.append(_start(words, shared | {PROCESS: str(index)}, index))
        return _wait(started)
    finally:
        for process in started:
            process.kill()
        for one, handler in before.items():
            signal.signal(one, handler)


def _start(
    words: Sequence[str], environment: dict[str, str], index: int
) -> subprocess.Popen[bytes]:
    """Process 0 has this one's output; what the others say is marked with their number."""
    pipe = None if index == 0 else subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxlm", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=None if index == 0 else subprocess.STDOUT,
        preexec_fn=_end_with_parent,
    )
    if pipe is not None:
        threading.Thread(target=_mark, args=(process, index)).start()
    return process


def _mark(process: subprocess.Popen[bytes], index: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        os.write(2, f"[{index}] ".encode() + line)


def _end_with_parent() -> None:
    """A child that is left alone ends, where the system can see to it (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PARENT_DEATH, signal.SIGTERM)


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit code of the first to fail, once all have ended; DONE where none has."""
    failed, end, harder = DONE, float("inf"), [subprocess.Popen.terminate, subprocess.Popen.kill]
    while True:
        running = [process for process in started if process.poll() is None]
        codes = [process.returncode for process in started if process.returncode]
        if codes and failed == DONE:
            failed = codes[0] if codes[0] > 0 else CLUSTER  # killed
            end = time.monotonic() + GRACE if failed != STOPPED else end
        if not running:
            return failed
        if time.monotonic() > end and harder:
            for process in running:
                harder[0](process)
            harder, end = harder[1:], time.monotonic() + GRACE
        time.sleep(0.05)
