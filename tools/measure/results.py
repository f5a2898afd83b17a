"""Results as JSON files, one per case and machine, and the docs' tables made from them alone."""

import json
import os
import platform
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jaxlm
from jaxlm.observe.record import code_state
from measure.cases import Case
from measure.pipe import Answer, cores

FORMAT = 1
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "peft", "trl")
BEGIN, END = "<!-- tools/bench.py --table: begin -->", "<!-- end -->"


def machine(device: str) -> Answer:
    """What a figure depends on besides the code. device: jax's name for it; a CPU gets its own."""
    name = cpu_model() if device == "cpu" else device
    return {
        "device": name,
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_model() -> str:
    """The processor's name, with its family and model where the name alone says little."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine()
    name = fields.get("model name") or platform.machine()
    if "cpu family" in fields and not re.search(r"\d", name):
        name += f" family {fields['cpu family']} model {fields['model']}"
    return name


def versions() -> dict[str, str]:
    """Versions of what computes here."""
    found = {"jaxlm": jaxlm.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def slug(text: str) -> str:
    """Words for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def complete(name: str, case: Case, measured: Answer, load: tuple[float, float]) -> Answer:
    """A result with all that says how it came about. load: of the machine, before and after."""
    code = code_state(Path(jaxlm.__file__).parent)
    found = measured.get("figures") or {**measured["sides"]["jaxlm"], "ratio": measured["ratio"]}
    return {
        "format": FORMAT,
        "case": name,
        "says": case.says,
        "definition": case.shape,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(measured["device"]),
        "load": {"before": load[0], "after": load[1]},
        "versions": versions(),
        "code": code,
        **{key: value for key, value in measured.items() if key != "device"},
        "targets": [
            {
                "figure": target.figure,
                "at_least" if target.at_least else "at_most": target.bound,
                "met": target.met(value),
            }
            for target in case.targets
            if (value := found.get(target.figure)) is not None
        ],
    }


def write(result: Answer, folder: Path) -> Path:
    """`folder`/CASE-MACHINE.json; an older one of the same machine is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    device, count = result["machine"]["device"], result["machine"]["cores"]
    path = folder / f"{result['case']}-{slug(device)}-{count}-cores.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def read(folder: Path) -> list[Answer]:
    """Every benchmark result in a folder, by case and machine."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [result for result in found if result.get("kind") in ("step", "figures")]


def table(results: list[Answer]) -> str:
    """Two Markdown tables: training steps, and figures of single parts."""
    steps = [result for result in results if result["kind"] == "step"]
    rest = [result for result in results if result["kind"] == "figures"]
    parts = []
    if steps:
        parts.append(_markdown(STEP_HEAD, [row for result in steps for row in _step_rows(result)]))
    if rest:
        parts.append(_markdown(FIGURE_HEAD, [r for result in rest for r in _figure_rows(result)]))
    return "\n\n".join(parts)


def update_docs(page: Path, folder: Path) -> None:
    """Replace what stands between the markers of a page. Raises ValueError without the markers."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: no line {BEGIN} and {END} after it; add both")
    page.write_text(f"{before}{begin}\n\n{table(read(folder))}\n\n{end}{after}")


STEP_HEAD = (
    "case",
    "program",
    "tokens/s",
    "jaxlm over the better torch",
    "MFU",
    "compile or first step",
    "temporaries",
    "peak memory",
    "machine",
    "measured",
)
FIGURE_HEAD = ("case", "figure", "value", "target", "machine", "measured")


def _step_rows(result: Answer) -> list[tuple[str, ...]]:
    rows = []
    for name, side in result["sides"].items():
        ours = name == "jaxlm"
        rows.append(
            (
                f"`{result['case']}`" if ours else "",
                name,
                f"{side['tokens_per_second']:,.0f}"
                + (_bound(result, "tokens_per_second") if ours else ""),
                _ratio(result) if ours else "",
                "unknown peak" if side["mfu"] is None else f"{side['mfu']:.1%}",
                f"{side['compile_seconds']:.1f} s",
                _bytes(side["temporary_bytes"]),
                _bytes(side["peak_bytes"]),
                *(_where(result) if ours else ("", "")),
            )
        )
    rows += [("", name, f"failed: {why}", *[""] * 7) for name, why in result["failed"].items()]
    return rows


def _figure_rows(result: Answer) -> list[tuple[str, ...]]:
    targets = {target["figure"]: target for target in result["targets"]}
    rows = []
    for number, (name, value) in enumerate(result["figures"].items()):
        case = f"`{result['case']}`" if number == 0 else ""
        where = _where(result) if number == 0 else ("", "")
        bound = _target(targets[name]) if name in targets else ""
        rows.append((case, name.replace("_", " "), _number(value), bound, *where))
    return rows


def _where(result: Answer) -> tuple[str, str]:
    machine, found = result["machine"], result["versions"]
    load = max(result["load"].values())
    date = f"{result['date'][:10]}, jax {found['jax']}"
    if "torch" in found and result["kind"] == "step":
        date += f", torch {found['torch']}, transformers {found.get('transformers')}"
    return f"{machine['device']}, {machine['cores']} cores", f"{date}, load up to {load:.1f}"


def _ratio(result: Answer) -> str:
    if result["ratio"] is None:
        return "not compared"
    return f"{result['ratio']:.2f}{_bound(result, 'ratio')}"


def _bound(result: Answer, figure: str) -> str:
    return "".join(f" ({_target(each)})" for each in result["targets"] if each["figure"] == figure)


def _target(target: Answer) -> str:
    word = "at least" if "at_least" in target else "at most"
    bound = target.get("at_least", target.get("at_most"))
    return f"{word} {_number(bound)}: {'met' if target['met'] else 'missed'}"


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f} MB"


def _markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
