"""`report.html`: one page with the curves of a run, its facts and its config.

The page asks nothing of any other place: the numbers are JSON in it, its script draws them, and its
Content-Security-Policy names the digests of the one script and the one style sheet it may use. This
file imports no jax.
"""

import base64
import hashlib
import html
import json
import math
import os
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

from jaxlm.core import words
from jaxlm.observe import goodput, metrics, record
from jaxlm.observe.curves import charts, marks
from jaxlm.observe.metrics import Row

FILE = "report.html"
SAMPLES = "samples.jsonl"
_PAGE = Path(__file__).parent / "page"
_TONES = ("running", "done", "stopped", "unknown")


def write(run_dir: str | os.PathLike[str]) -> Path:
    """Write the report into a run's folder and return its path. Works while the run goes on.

    Raises DataError when the folder has no metrics.jsonl or a damaged one.
    """
    folder = Path(run_dir)
    rows = metrics.read(folder)
    past = record.read(folder)
    config = folder / "config.yaml"
    text = config.read_text(errors="replace") if config.exists() else ""
    path, said = folder / FILE, folder / SAMPLES
    samples = said.read_text(encoding="utf-8").split("\n") if said.exists() else []
    found = [json.loads(line) for line in samples if line]
    times = goodput.spent(goodput.read(folder))
    whole = page(folder.resolve().name, rows, past, text, found, times)
    metrics.replace(path, whole.encode())
    return path


def page(
    name: str,
    rows: Sequence[Row],
    past: record.Record,
    config: str,
    samples: Sequence[dict[str, Any]] = (),
    times: goodput.Spent | None = None,
) -> str:
    """The page as text. rows: of metrics.jsonl; past: of record.json, may be empty; samples: of
    samples.jsonl; times: of goodput.jsonl.
    """
    starts = past.get("starts", [])
    resumes = [start["step"] for start in starts[1:]]
    data = {"charts": charts(rows), **marks(rows), "resumes": resumes}
    script, style = ((_PAGE / f"page.{kind}").read_text() for kind in ("js", "css"))
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    status = str(past.get("status", "unknown"))
    return Template((_PAGE / "page.html").read_text()).substitute(
        name=html.escape(name),
        policy=html.escape(policy),
        style=style,
        script=script,
        status=html.escape(status),
        tone=next((tone for tone in _TONES if status.startswith(tone)), "failed"),
        tiles="".join(_tile(*tile) for tile in _tiles(rows, starts)),
        facts="".join(_line(*fact) for fact in _facts(rows, past, times)),
        starts="".join(_start(start) for start in starts),
        samples=_samples(samples),
        config=html.escape(config or "no config.yaml in this folder"),
        data=_json(data),
    )


def _tiles(rows: Sequence[Row], starts: Sequence[Any]) -> list[tuple[str, str, str]]:
    """(label, figure, what to know about it) of the figures on top."""
    last = max((row["step"] for row in rows), default=0)
    goal = starts[-1]["steps"] if starts else last
    validation = _finite(rows, "validation_loss")
    best = min(validation, key=lambda pair: pair[1], default=None)
    bits = _finite(rows, "validation_bits_per_byte")
    loss, tokens = _finite(rows, "loss"), _finite(rows, "tokens")
    speeds = [value for _, value in _finite(rows, "tokens_per_second")]
    return [
        ("steps", f"{last:,}", f"of {goal:,}"),
        ("training loss", *_newest(loss)),
        (
            "validation loss",
            _newest(validation)[0],
            f"best {best[1]:.4f} at {best[0]:,}" if best else "",
        ),
        ("bits per byte", *_newest(bits)),
        ("tokens", words.count(tokens[-1][1]) if tokens else "-", "trained on"),
        ("tokens per second", words.count(statistics.median(speeds)) if speeds else "-", "median"),
    ]


def _facts(
    rows: Sequence[Row], past: record.Record, times: goodput.Spent | None = None
) -> list[tuple[str, str]]:
    """(name, value) of what the table lists."""
    seconds = sum(value for _, value in _finite(rows, "seconds"))
    perplexity = _finite(rows, "validation_perplexity")
    memory = [value for _, value in _finite(rows, "memory_bytes")]
    skipped = [value for _, value in _finite(rows, "skipped")]
    devices, versions = past.get("devices", {}), past.get("versions", {})
    mesh = " x ".join(f"{axis}={size}" for axis, size in devices.get("mesh", {}).items())
    facts = [
        ("time in training", words.duration(seconds)),
        ("goodput", goodput.line(times) if times and times.seconds else "-"),
        ("validation perplexity", f"{perplexity[-1][1]:.4g}" if perplexity else "-"),
        ("model FLOP utilization", _utilization(rows)),
        ("most memory", words.size(max(memory)) if memory else "-"),
        ("steps skipped", f"{skipped[-1]:.0f}" if skipped else "0"),
    ]
    starts = [start["step"] for start in past.get("starts", ())]
    facts += _planned(rows, starts, past.get("planned", {}))
    if devices:
        facts += [
            (
                "devices",
                f"{devices['count']} x {devices['kind']}",
            ),
            ("processes", str(devices["processes"])),
            ("mesh", mesh),
            ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ]
    for part in ("model", "code", "digests", "environment"):
        facts += [(f"{part}: {key}", _text(value)) for key, value in past.get(part, {}).items()]
    return facts


def _planned(
    rows: Sequence[Row], starts: Sequence[int], planned: dict[str, float]
) -> list[tuple[str, str]]:
    """What the planner said of a step, and what it was."""
    memory = [value for _, value in _finite(rows, "memory_bytes")]
    measured = {
        "step_seconds": _step_seconds(rows, starts),
        "memory_bytes": max(memory, default=None),
    }
    names = {"step_seconds": "time of a step", "memory_bytes": "memory of a device"}
    facts = []
    for key, said in planned.items():
        shown = (lambda x: f"{x:.3g} s") if key == "step_seconds" else words.size
        found = measured[key]
        was = f"measured {shown(found)} ({found / said - 1:+.0%})" if found else "not measured"
        facts.append((names[key], f"planned {shown(said)}, {was}"))
    return facts


def _step_seconds(rows: Sequence[Row], starts: Sequence[int]) -> float | None:
    """The median, without data and checkpoints; the first row of all pays for the start.

    starts: the steps that the run was started from: the next row is of the steps since then.
    """
    known = _finite(rows, "compute_seconds")
    each = [
        s / (step - max((at for at in starts if last < at < step), default=last))
        for (last, _), (step, s) in pairwise(known)
        if step > last
    ]
    return statistics.median(each) if each else None


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _utilization(rows: Sequence[Row]) -> str:
    shares = [value for _, value in _finite(rows, "mfu")]
    if not shares:
        return "not known: no peak is listed for this device"
    return f"{statistics.median(shares):.1%}, median"


def _finite(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
    """(step, number) of a column, where it is one."""
    pairs: list[tuple[int, Any]] = [(row["step"], row.get(name)) for row in rows]
    return [(step, y) for step, y in pairs if type(y) in (int, float) and math.isfinite(y)]


def _newest(pairs: list[tuple[int, float]]) -> tuple[str, str]:
    return (f"{pairs[-1][1]:.4f}", f"at {pairs[-1][0]:,}") if pairs else ("-", "")


def _tile(label: str, figure: str, note: str) -> str:
    inside = (html.escape(text) for text in (label, figure, note))
    return "<div class=tile><span>{}</span><b>{}</b><small>{}</small></div>".format(*inside)


def _line(name: str, value: str) -> str:
    return f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"


def _start(start: dict[str, Any]) -> str:
    end = start.get("ended", "-"), start.get("last_step", "-")
    cells = (start["time"], start["step"], *end, "; ".join(start["differences"]) or "-")
    return "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _samples(rows: Sequence[dict[str, Any]]) -> str:
    """What was answered to each prompt at the first and at the last evaluation."""
    steps = sorted({row["step"] for row in rows})
    shown = list(dict.fromkeys(steps[:1] + steps[-1:]))
    answers: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        asked = row["prompt"], row["expected"] or ""
        answers.setdefault(asked, {})[row["step"]] = row["output"]
    lines = [("prompt", *(f"step {step:,}" for step in shown), "expected")]
    for (prompt, wanted), found in answers.items():
        lines.append((prompt, *(found.get(step, "") for step in shown), wanted))
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    table = f"<details open><summary>Answers</summary><table>{body}</table></details>"
    return table if rows else ""


def _json(data: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    """As Content-Security-Policy names an inline script or style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
