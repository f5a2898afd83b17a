"""What the report draws: columns of metrics.jsonl as charts, thinned, with what interrupts them."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from jaxlm.observe.metrics import Row

Point = tuple[int, float | None]
_POINTS = 2000

CHARTS: tuple[dict[str, Any], ...] = (
    {
        "title": "Loss",
        "wide": True,
        "log": True,
        "noisy": True,
        "series": {"loss": "training", "validation_loss": "validation"},
    },
    {"title": "Validation bits per byte", "series": {"validation_bits_per_byte": "bits per byte"}},
    {
        "title": "General text: change of the loss, and KL from the base",
        "series": {"general_change": "change of the loss", "general_kl": "KL(base || tuned)"},
    },
    {
        "title": "Answers",
        "unit": "percent",
        "series": {
            "samples_match": "right",
            "samples_parsed": "parsed",
            "samples_schema": "fitting the schema",
            "samples_exact": "as expected",
            "samples_rouge_l": "ROUGE-L",
        },
    },
    {"title": "Answers: chrF", "series": {"samples_chrf": "chrF2, of 100"}},
    {"title": "Learning rate", "log": True, "series": {"learning_rate": "rate"}},
    {
        "title": "Gradient norm",
        "log": True,
        "noisy": True,
        "series": {"grad_norm": "before clipping"},
    },
    {"title": "Throughput", "noisy": True, "series": {"tokens_per_second": "tokens per second"}},
    {"title": "Model FLOP utilization", "unit": "percent", "series": {"mfu": "MFU"}},
    {"title": "Goodput", "unit": "percent", "series": {"goodput": "of the wall time"}},
    {"title": "Memory", "unit": "bytes", "series": {"memory_bytes": "fullest device"}},
    {
        "title": "Where a step's time goes",
        "unit": "seconds",
        "stack": True,
        "series": {
            "split_compute": "compute",
            "split_data": "data",
            "split_checkpoint": "checkpoint",
            "split_other": "other",
        },
    },
)
"""The charts that every run may have; a column named in none gets a chart of its own."""

_NO_CHART = {
    *("step", "tokens", "skipped", "seconds", "data_seconds", "compute_seconds"),
    *("checkpoint_seconds", "validation_perplexity", "validation_tokens", "general_loss"),
}


def charts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The charts that have numbers: title, look, series of x (steps) and y (None: not finite)."""
    columns = _columns(rows)
    known = {column for chart in CHARTS for column in chart["series"]} | _NO_CHART
    others = [{"title": name, "series": {name: name}} for name in columns if name not in known]
    drawn = []
    for chart in (*CHARTS, *others):
        series = [
            {"name": label, **_thin(columns[column])}
            for column, label in chart["series"].items()
            if column in columns and any(y is not None for _, y in columns[column])
        ]
        if series:
            drawn.append({**chart, "series": series})
    return drawn


def marks(rows: Sequence[Row]) -> dict[str, Any]:
    """What the curves do not say: `skipped` [[step, how many]], `gaps` [[from, to]] and `lost`.

    `gaps` are steps without a row, more than twice as long as the rows are apart; `lost` are the
    steps whose loss or norm is not finite.
    """
    training = [row for row in rows if "loss" in row]
    skipped, before = [], 0
    for row in training:
        if (now := row.get("skipped") or 0) > before:
            skipped.append([row["step"], now - before])
        before = now
    steps = [row["step"] for row in training]
    apart = [b - a for a, b in pairwise(steps)]
    usual = statistics.median(apart) if apart else 0
    gaps = [[a, b] for a, b in pairwise(steps) if b - a > 2 * usual]
    lost = [row["step"] for row in training if not _all_finite(row)]
    return {"skipped": skipped, "gaps": gaps, "lost": lost}


def _columns(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Column -> (step, number or None when it is not finite), and the step's time by part."""
    columns: dict[str, list[Point]] = {}
    timed = [row["step"] for row in rows if "seconds" in row]
    usual = statistics.median([b - a for a, b in pairwise(timed)] or timed or [1])
    before = 0
    for row in rows:
        numbers = {k: v for k, v in row.items() if type(v) in (int, float) and k != "step"}
        if "seconds" in numbers:
            steps = min(row["step"] - before, usual)  # rows that are missing took their time along
            numbers |= _split(numbers, max(1, steps))
            before = row["step"]
        for name, value in numbers.items():
            y = value if math.isfinite(value) else None
            columns.setdefault(name, []).append((row["step"], y))
    return columns


def _split(row: Row, steps: float) -> Row:
    """Seconds of one step by part, from a row that covers several."""
    parts = {name: row.get(f"{name}_seconds", 0.0) for name in ("compute", "data", "checkpoint")}
    parts["other"] = max(0.0, row["seconds"] - sum(parts.values()))
    return {f"split_{name}": seconds / steps for name, seconds in parts.items()}


def _thin(points: list[Point]) -> dict[str, list[Any]]:
    """At most _POINTS points: of each stretch the lowest and the highest, so no spike is lost."""
    if len(points) > _POINTS:
        kept, width = [], math.ceil(2 * len(points) / _POINTS)
        for start in range(0, len(points), width):
            part = points[start : start + width]
            finite = [(y, x) for x, y in part if y is not None]
            ends = {min(finite)[::-1], max(finite)[::-1]} if finite else {part[0]}
            kept += sorted(ends)
        points = kept if kept[-1] == points[-1] else [*kept, points[-1]]
    return {"x": [x for x, _ in points], "y": [y for _, y in points]}


def _all_finite(row: Row) -> bool:
    numbers = (row.get(name) for name in ("loss", "grad_norm"))
    return all(math.isfinite(number) for number in numbers if isinstance(number, float))
