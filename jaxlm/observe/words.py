"""Numbers as people read them, and a row of metrics as one line."""

from typing import Any

Row = dict[str, Any]


def count(number: float) -> str:
    """Three digits and a decimal prefix: 12.3k, 4.56M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{_three(number / size)}{unit}"
    return f"{number:.0f}" if float(number).is_integer() else _three(number)


def size(number: float) -> str:
    """Bytes: 3.21 GB. Decimal, as disks and accelerators are sold."""
    text = count(number)
    return f"{text[:-1]} {text[-1]}B" if text[-1].isalpha() else f"{text} B"


def duration(seconds: float) -> str:
    """Two units at most: 45 s, 4 m 12 s, 3 h 07 m, 2 d 04 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def printable(text: str) -> str:
    """The same with control characters spelled out: a file's name must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


FIELDS = {
    "loss": lambda value: f"loss {value:.4f}",
    "learning_rate": lambda value: f"rate {value:.2e}",
    "grad_norm": lambda value: f"norm {value:.3g}",
    "tokens_per_second": lambda value: f"{count(value)} tok/s",
    "mfu": lambda value: f"mfu {value:.1%}",
    "memory_bytes": lambda value: f"memory {size(value)}",
    "skipped": lambda value: f"skipped {value}" if value else "",
    "validation_loss": lambda value: f"validation loss {value:.4f}",
    "validation_bits_per_byte": lambda value: f"{value:.4f} bits/byte",
    "validation_perplexity": lambda value: f"perplexity {value:.4g}",
}
"""Column of metrics.jsonl -> how the line shows it, in the line's order."""

HIDDEN = {
    "step",
    "tokens",
    "validation_tokens",
    "seconds",
    "data_seconds",
    "compute_seconds",
    "checkpoint_seconds",
}
"""Columns that the line leaves to metrics.jsonl and the report."""


def line(row: Row, steps: int, eta: float | None = None) -> str:
    """A row as one line: the columns above first, then what else the objective reports.

    steps: of the whole run. eta: seconds left.
    """
    parts = [f"step {row['step']:{len(str(steps))}d}/{steps}"]
    parts += [show(row[name]) for name, show in FIELDS.items() if row.get(name) is not None]
    parts += [
        f"{name} {value:.4g}"
        for name, value in row.items()
        if name not in FIELDS and name not in HIDDEN and isinstance(value, int | float)
    ]
    if eta is not None:
        parts.append(f"{duration(eta)} left")
    return "  ".join(part for part in parts if part)


def _three(number: float) -> str:
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f}"
