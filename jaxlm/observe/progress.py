"""What a run says while it runs: a live panel on a terminal, else one plain line per row.

The same plain lines go to `log.txt`, with the time. There is never silence: a thread writes a
heartbeat while something takes long.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jaxlm.core import words
from jaxlm.observe.line import line as as_line
from jaxlm.observe.panel import Pace, View

FILE = "log.txt"
_LONGEST_SILENCE = 60.0


class _Console(Console):
    """Never hides the cursor: a process that is killed could not show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class Progress:
    """The voice of a run; a context manager. Every method may be called from any thread.

    On a process that is not the primary one only warnings are said. A terminal or a disk that goes
    away never stops the run.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        name: str,
        steps: int,
        primary: bool,
        stream: TextIO | None = None,
        quiet: float = 10.0,
    ):
        """name: of the run. steps: 0 where `expect` will tell. stream: stdout by default.

        quiet: seconds until a heartbeat.
        """
        self._stream = sys.stdout if stream is None else stream
        self._primary, self._quiet = primary, quiet
        self._lock = threading.RLock()
        self._steps, self._pace, self._view = steps, Pace(), View(name, steps)
        self._phases: list[tuple[str, float]] = []
        self._log = Path(folder) / FILE if primary else None
        self._live = self._start_live() if primary and _is_terminal(self._stream) else None
        self._last = self._last_row = time.monotonic()
        self._due, self._beats = quiet, 0
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        if primary:
            self._heart.start()

    def expect(self, steps: int) -> None:
        """How many steps the run has, where that was not known at the start."""
        self._steps = self._view.steps = steps

    def say(self, text: str) -> None:
        """One line, or several."""
        if self._primary:
            self._write(text)

    def warn(self, text: str) -> None:
        """A line that asks for attention; said by every process."""
        self._write(f"warning: {text}", style="yellow")

    def row(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl: `step` and numbers; `seconds` counts from the row before."""
        if not self._primary:
            return
        eta = None
        if "seconds" in row:
            self._pace.update(row["step"], row["seconds"])
            self._last_row = time.monotonic()
            eta = self._pace.left(self._steps)
        self._view.update(row, eta)
        self._write(as_line(row, self._steps, eta), screen=self._live is None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Name what takes long, such as `compiling`: the heartbeat tells it, and the panel."""
        start = (name, time.monotonic())
        with self._lock:
            self._phases.append(start)
            self._view.phase = start
            beats, self._due = self._beats, self._quiet
        try:
            yield
        finally:
            with self._lock:
                self._phases.remove(start)
                self._view.phase = self._phases[-1] if self._phases else None
                heard = self._beats > beats
            if heard:
                self.say(f"{name}: {words.duration(time.monotonic() - start[1])}")

    def close(self) -> None:
        """End the panel and the heartbeat; what is said later is still printed, as plain lines."""
        self._end.set()
        with self._lock:
            live, self._live = self._live, None
        if live is not None:
            try:
                live.stop()
            except OSError:
                self._stream = None
        if self._heart.is_alive() and self._heart is not threading.current_thread():
            self._heart.join()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start_live(self) -> Live:
        console = _Console(file=self._stream, highlight=False)
        live = Live(self._view, console=console, refresh_per_second=2)
        live.start()
        return live

    def _write(self, text: str, *, style: str = "", screen: bool = True) -> None:
        with self._lock:
            self._last, self._due = time.monotonic(), self._quiet
            for line in text.splitlines():
                shown = words.printable(line)
                self._record(shown)
                if screen:
                    self._print(shown, style)

    def _record(self, line: str) -> None:
        if self._log is None:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with open(self._log, "ab", buffering=0) as file:
                file.write(f"{now} {line}\n".encode(errors="backslashreplace"))
        except OSError as error:
            path, self._log = self._log, None
            self._print(f"warning: {path}: {error.strerror}; this run logs no further", "yellow")

    def _print(self, line: str, style: str) -> None:
        if self._stream is None:
            return
        try:
            if self._live is not None:
                self._live.console.print(Text(line, style))
                return
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            known = line.encode(encoding, "backslashreplace").decode(encoding)
            self._stream.write(known + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone: log.txt goes on
            self._stream = None

    def _beat(self) -> None:
        """Say what is going on after each silence, at growing distances."""
        while not self._end.wait(min(self._due, self._quiet) / 4):
            with self._lock:
                now = time.monotonic()
                if now - self._last < self._due:
                    continue
                due = min(2 * self._due, max(_LONGEST_SILENCE, self._quiet))
                self._write(self._doing(now), screen=self._live is None)
                self._due = due
                self._beats += 1

    def _doing(self, now: float) -> str:
        if self._phases:
            name, since = self._phases[-1]
            return f"{name}... {words.duration(now - since)}"
        since = words.duration(now - self._last_row)
        step = f" since step {self._view.step}/{self._steps}" if self._view.step else ""
        return f"working... {since}{step}"


def _is_terminal(stream: Any) -> bool:
    # Asked of the stream itself: FORCE_COLOR would make rich animate into files.
    try:
        return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    except (AttributeError, ValueError):  # there is no stream, or it is closed
        return False
