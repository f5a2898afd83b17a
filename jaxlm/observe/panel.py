"""The live panel of a run on a terminal."""

import math
import time
from collections import deque
from itertools import pairwise
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxlm.core import words

_SPARK = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 16
_SPIN = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Pace:
    """Seconds per step, from the rows alone: a moving average that leaves the first row out.

    The first row of a start pays for compiling, and would promise an end hours too late.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._step = 0
        self._mean: float | None = None

    def update(self, step: int, seconds: float) -> None:
        """step: of this row; seconds: since the row before."""
        if step <= self._step:
            return
        per_step = seconds / (step - self._step)
        if self._rows > 1 and self._mean is not None:
            self._mean = 0.8 * self._mean + 0.2 * per_step
        elif self._rows == 1:
            self._mean = per_step
        self._rows, self._step = self._rows + 1, step

    def left(self, steps: int) -> float | None:
        """Seconds until `steps`; None before the second row."""
        return None if self._mean is None else self._mean * (steps - self._step)


class View:
    """What the panel shows; `rich` renders it anew a few times a second."""

    def __init__(self, name: str, steps: int):
        self.name, self.steps, self.step = name, steps, 0
        self.values: dict[str, Any] = {}
        self.losses: deque[float] = deque(maxlen=2000)
        self.eta: float | None = None
        self.phase: tuple[str, float] | None = None
        """What happens besides training, and since when by time.monotonic()."""

    def update(self, row: dict[str, Any], eta: float | None) -> None:
        """Take over a row of metrics."""
        self.step = row["step"]
        self.eta = self.eta if eta is None else eta
        self.values.update({name: value for name, value in row.items() if value is not None})
        if isinstance(loss := row.get("loss"), float) and math.isfinite(loss):
            self.losses.append(loss)

    def __rich__(self) -> RenderableType:
        done = self.step / max(1, self.steps)
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(ratio=1)
        bar.add_column(justify="right", min_width=4)
        bar.add_column(justify="right", min_width=14)
        left = f"{words.duration(self.eta)} left" if self.eta is not None and done < 1 else ""
        bar.add_row(
            ProgressBar(self.steps, self.step, complete_style="cyan", finished_style="green"),
            Text(f"{done:.0%}", "bold"),
            Text(left, "dim"),
        )
        title = Text.assemble((" jaxlm ", "bold cyan"), (words.printable(self.name) + " ", "dim"))
        subtitle = Text(f" step {self.step:,} of {self.steps:,} " if self.steps else "", "dim")
        parts = [bar, Text(), self._table(), self._status()]
        return Panel(
            Group(*parts),
            box=box.ROUNDED,
            border_style="bright_black",
            title=title,
            title_align="left",
            subtitle=subtitle,
            subtitle_align="right",
            padding=(1, 2, 0, 2),
            width=88,
        )

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for style in ("dim", "", "dim", ""):
            table.add_column(style=style, no_wrap=True, min_width=10 if style else 24)
        loss = Text.assemble(self._show("loss", "{:.4f}"), "  ", (spark(self.losses), "cyan"))
        validation = self._show("validation_loss", "{:.4f}")
        if "validation_bits_per_byte" in self.values:
            bits = self._show("validation_bits_per_byte", "{:.3f} bits/byte")
            validation = f"{validation}  {bits}"
        rate, norm = self._show("learning_rate", "{:.2e}"), self._show("grad_norm", "{:.3g}")
        table.add_row("loss", loss, "validation", validation)
        table.add_row("rate", rate, "norm", norm)
        speed = self._count("tokens_per_second", "{} tok/s")
        table.add_row("speed", speed, "MFU", self._show("mfu", "{:.1%}"))
        memory = words.size(self.values["memory_bytes"]) if "memory_bytes" in self.values else "-"
        table.add_row("memory", memory, "tokens", self._count("tokens", "{}"))
        return table

    def _status(self) -> Text:
        if self.phase is None:
            skipped = self.values.get("skipped", 0)
            return (
                Text(f"{skipped} steps skipped: gradient not finite", "yellow")
                if skipped
                else Text()
            )
        name, since = self.phase
        now = time.monotonic()
        spinner = _SPIN[int(now * 8) % len(_SPIN)]
        text = f"{name} {words.duration(now - since)}"
        return Text.assemble((f"{spinner} ", "cyan"), (words.printable(text), "dim"))

    def _show(self, name: str, form: str) -> str:
        return form.format(self.values[name]) if name in self.values else "-"

    def _count(self, name: str, form: str) -> str:
        return form.format(words.count(self.values[name])) if name in self.values else "-"


def spark(numbers: "deque[float]") -> str:
    """A curve of up to 16 columns, each the mean of its share of the numbers."""
    columns = min(_SPARK_WIDTH, len(numbers))
    if columns < 2:
        return ""
    values = list(numbers)
    edges = [len(values) * i // columns for i in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(_SPARK[round(7 * (mean - low) / span) if span else 0] for mean in means)
