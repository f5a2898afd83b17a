"""A row of metrics as one line."""

from typing import Any

from jaxlm.core.words import count, duration, size

Row = dict[str, Any]

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
    "samples_match": lambda value: f"right {value:.1%}",
    "samples_parsed": lambda value: f"parsed {value:.1%}",
    "samples_schema": lambda value: f"fitting {value:.1%}",
    "samples_exact": lambda value: f"exact {value:.1%}",
    "samples_rouge_l": lambda value: f"ROUGE-L {value:.1%}",
    "samples_chrf": lambda value: f"chrF {value:.1f}",
    "general_loss": lambda value: f"general loss {value:.4f}",
    "general_change": lambda value: f"changed {value:+.4f}",
    "general_kl": lambda value: f"KL {value:.4g}",
}
"""Column of metrics.jsonl -> how the line shows it, in the line's order."""

HIDDEN = {
    "step",
    "tokens",
    "validation_tokens",
    "validation_examples",
    "seconds",
    "data_seconds",
    "compute_seconds",
    "checkpoint_seconds",
    "goodput",
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
