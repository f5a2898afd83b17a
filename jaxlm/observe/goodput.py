"""`goodput.jsonl`: where a run's wall time went, from its first start to now, over all restarts.

Goodput is the share that went into steps that count. Each moment of process 0 has one cause, so the
parts add up to the wall time:

train     steps, but those that were lost      save      checkpoints, and the wait at the end
lost      steps that were made once more       restore   reading a checkpoint
start     before the first step, but for       data      waiting for rows
          what has a name of its own           evaluate  scores
compile   compiling the step                   idle      from an end, or the last row before a kill,
                                                         to the next start
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.core import words
from jaxlm.observe import metrics

FILE = "goodput.jsonl"
CAUSES = "train", "lost", "start", "compile", "data", "save", "restore", "evaluate", "idle"
Times = defaultdict[str, float]


class Spent(NamedTuple):
    """Seconds by cause, and how many steps were lost."""

    seconds: dict[str, float]
    lost_steps: int

    @property
    def wall(self) -> float:
        """Seconds since the first start."""
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """Goodput, in [0, 1]."""
        return self.seconds.get("train", 0.0) / max(self.wall, 1e-9)


class Clock:
    """What the time of this process is spent on. Only process 0 writes.

    began: when the process did, by time.monotonic(); now, where it is not told.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, primary: bool, began: float | None = None
    ):
        self._path, self._primary = Path(folder) / FILE, primary
        self._causes = ["start"]
        self._seconds: Times = defaultdict(float)
        self._before = Spent({}, 0)
        self._own: Times = defaultdict(float)
        now = time.monotonic()
        self._first = self._last = now if began is None else began
        self._begun = time.time() - (now - self._first)

    def begin(self, step: int) -> None:
        """Go on from `step`: what was done after it is lost. Once, when the folder is owned."""
        if not self._primary:
            return
        if self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n"):
            with suppress(OSError):
                metrics.append(self._path, b"\n")  # a crash tore the last line
        self._append({"start": self._begun, "step": step})
        self._before = spent(read(self._path.parent))

    @contextmanager
    def within(self, cause: str) -> Iterator[None]:
        """The time inside has this cause, but for what is within another inside it."""
        self._lap()
        self._causes.append(cause)
        try:
            yield
        finally:
            self._lap()
            self._causes.pop()

    def turn(self, cause: str) -> None:
        """From now on the time that is within nothing has this cause."""
        self._lap()
        self._causes[0] = cause

    def write(self, step: int) -> None:
        """Keep what the time since the last line was spent on, up to `step`."""
        self._lap()
        _add(self._own, self._seconds)
        if self._primary:
            now = self._begun + self._last - self._first
            self._append({"time": now, "step": step, "seconds": dict(self._seconds)})
        self._seconds.clear()

    @property
    def spent(self) -> Spent:
        """Of all starts, up to the last line of this one."""
        seconds: Times = defaultdict(float, self._before.seconds)
        _add(seconds, self._own)
        return Spent(dict(seconds), self._before.lost_steps)

    def _lap(self) -> None:
        now = time.monotonic()
        self._seconds[self._causes[-1]] += now - self._last
        self._last = now

    def _append(self, line: dict[str, Any]) -> None:
        with suppress(OSError):  # a full disk stops no training
            metrics.append(self._path, json.dumps(line).encode() + b"\n")


def read(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run; none where there is no file. Lines that a crash tore are left out."""
    try:
        content = (Path(folder) / FILE).read_text(errors="replace")
    except OSError:
        return []
    lines = []
    for text in content.splitlines():
        with suppress(ValueError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def spent(lines: Iterable[dict[str, Any]]) -> Spent:
    """What all starts together spent their time on."""
    total: Times = defaultdict(float)
    rows: list[tuple[int, int, float]] = []
    """(step before, step, seconds of training) of every line whose steps still count."""
    step, end, lost_steps = 0, None, 0
    for line in lines:
        if "start" in line:
            total["idle"] += max(0.0, line["start"] - end) if end is not None else 0.0
            lost_steps += max(0, step - line["step"])
            rows, lost = _back_to(line["step"], rows)
            total["train"] -= lost
            total["lost"] += lost
            step, end = line["step"], line["start"]
            continue
        _add(total, line["seconds"])
        rows.append((step, line["step"], line["seconds"].get("train", 0.0)))
        step, end = line["step"], line["time"]
    return Spent({cause: total[cause] for cause in CAUSES if total[cause] > 0}, lost_steps)


def _add(total: Times, seconds: dict[str, float]) -> None:
    for cause, value in dict(seconds).items():  # another thread may end the process meanwhile
        total[cause] += value


def _back_to(
    step: int, rows: list[tuple[int, int, float]]
) -> tuple[list[tuple[int, int, float]], float]:
    """(the rows up to `step`, the seconds of those after it), a row in the middle in proportion."""
    kept, lost = [], 0.0
    for first, last, seconds in rows:
        share = (min(last, step) - first) / (last - first) if last > first else float(last <= step)
        share = max(0.0, share)
        lost += seconds * (1 - share)
        if share > 0:
            kept.append((first, min(last, step), seconds * share))
    return kept, lost


def line(found: Spent) -> str:
    """In words: the share, of how long, and what the rest went to."""
    parts = sorted(found.seconds.items(), key=lambda part: -part[1])
    wall = max(found.wall, 1e-9)
    rest = ", ".join(f"{name} {value / wall:.1%}" for name, value in parts if name != "train")
    lost = f"; {found.lost_steps:,} steps were made again" if found.lost_steps else ""
    return f"{found.share:.1%} of {words.duration(found.wall)}: {rest}{lost}"


def began() -> float:
    """When this process began, by time.monotonic(); now, where the system does not tell."""
    now = time.monotonic()
    try:
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        return now - max(0.0, boot - int(ticks) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError):
        return now
