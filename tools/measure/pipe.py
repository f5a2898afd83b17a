"""A measuring process that is kept alive and told over a pipe what to do, one JSON line at a time.

So two programs can take turns in one go, and the drift of a shared machine falls on both.
"""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
Handler = Callable[[Answer], Answer]

TOOLS = Path(__file__).resolve().parents[1]


def python_path() -> str:
    """PYTHONPATH of a process that imports this package, and jaxlm from this checkout."""
    return os.pathsep.join(
        filter(None, (str(TOOLS), str(TOOLS.parent), os.environ.get("PYTHONPATH")))
    )


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class SideError(Exception):
    """A measuring process ended, or said what went wrong, in one line."""


class Side:
    """The parent's end of one process."""

    def __init__(self, module: str, environment: dict[str, str]):
        """module: one of this package that calls `serve`. environment: added to this process's."""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"measure.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | environment | {"PYTHONPATH": python_path()},
        )

    def ask(self, order: Answer) -> Answer:
        """Send an order and wait for its answer. Raises SideError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SideError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise SideError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return f"exit {code}: {lines[-1] if lines else 'no message'}"


def serve(handlers: dict[str, Handler]) -> None:
    """Answer orders from stdin until it closes: `{"do": NAME, ...}` calls handlers[NAME].

    What a library prints goes to stderr, so that answers stay alone on the pipe.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = handlers[order["do"]](order)
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), "")
            answer = {"error": f"{type(error).__name__}: {first}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def most_resident() -> int:
    """The most resident bytes of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cores() -> int:
    """Cores that this process may use: both sides compute with as many threads."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
