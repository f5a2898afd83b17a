"""A job of several processes on this machine: what a cluster will run, or all GPUs of a host."""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import IO

from jaxlm.core.errors import CLUSTER, DONE, STOPPED
from jaxlm.core.job import COORDINATOR, PROCESS, PROCESSES

GRACE = 10.0
"""Seconds for the others to end by themselves once one has failed, and again after SIGTERM."""
_PARENT_DEATH = 1  # prctl(2): PR_SET_PDEATHSIG
_LIBC = ctypes.CDLL(None)
_ERROR = re.compile(
    rb"jaxlm: error: (?:process \d+ \([^)]*\): )?(.*?)(?: \(on process \d+\))?\s*", re.DOTALL
)
"""The line that ends a process, without who says it of whom: all end with that of the first."""


def run(words: Sequence[str], count: int, cpu_devices: int | None = None) -> int:
    """Run `jaxlm WORDS` in `count` processes of one job; return the code of the first to fail.

    cpu_devices: so many devices each on the CPU, instead of sharing the GPUs that are here. A
    signal to this process reaches all. When one fails, none is left behind, and why is said once,
    though each says it.
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
    speech = Speech()

    def forward(number: int, frame: FrameType | None) -> None:
        for process in started:
            if process.poll() is None and not (number == signal.SIGINT and sys.stdin.isatty()):
                process.send_signal(number)  # a terminal sends SIGINT to all by itself

    before = {one: signal.signal(one, forward) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        for index in range(count):
            started.append(_start(words, shared | {PROCESS: str(index)}, index, speech))
        return _wait(started)
    finally:
        for process in started:
            process.kill()
        for one, handler in before.items():
            signal.signal(one, handler)


class Speech:
    """What processes say, line by line, those but process 0 marked with their number."""

    def __init__(self) -> None:
        self._errors: set[bytes] = set()
        self._lock = threading.Lock()

    def relay(self, lines: IO[bytes], index: int) -> None:
        """Say all lines of a process but an error that another has said before."""
        mark = f"[{index}] ".encode() if index else b""
        for line in lines:
            with self._lock:
                if found := _ERROR.fullmatch(line):
                    if found[1] in self._errors:
                        continue
                    self._errors.add(found[1])
                with suppress(OSError):  # nobody listens: a process that nobody reads would stop
                    os.write(2, mark + line)


def _start(
    words: Sequence[str], environment: dict[str, str], index: int, speech: Speech
) -> subprocess.Popen[bytes]:
    """Process 0 has this one's standard output, which may be a terminal."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxlm", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=None if index == 0 else subprocess.PIPE,
        stderr=subprocess.PIPE if index == 0 else subprocess.STDOUT,
        preexec_fn=_end_with_parent,
    )
    lines = process.stderr if index == 0 else process.stdout
    threading.Thread(target=speech.relay, args=(lines, index)).start()
    return process


def _end_with_parent() -> None:
    """A child that is left alone ends, where the system can see to it (Linux)."""
    prctl = getattr(_LIBC, "prctl", None)
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
