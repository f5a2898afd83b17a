"""The tables of docs/planning.md: what was compiled ahead, how well times fit, and the devices.

python tools/plan_tables.py            writes them from benchmarks/plan-compile.json
python tools/plan_tables.py --compile  compiles first, in turn (needs jaxlm[tpu], 10 minutes)
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import published  # noqa: E402

from jaxlm.core.words import size  # noqa: E402
from jaxlm.plan import steptime  # noqa: E402
from jaxlm.plan.devices import devices  # noqa: E402

PAGE, KEPT = ROOT / "docs/planning.md", ROOT / "benchmarks/plan-compile.json"
CASES = (
    ("llama3_8b", "v5e:4x4"),
    ("llama3_70b", "v5p:8x8x8"),
    ("llama3_405b", "v5p:16x16x16"),
)


def compile_all():
    cases = {}
    for preset, device in CASES:
        words = ["plan", preset, "--device", device, "--compile", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "jaxlm", *words], capture_output=True, text=True, check=True
        )
        cases[preset] = json.loads(done.stdout)
        print(preset, cases[preset]["compiled"], flush=True)
    packages = ("jax", "jaxlib", "libtpu")
    kept = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[2], 1),
        "cases": cases,
    }
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")


def compiled():
    kept = json.loads(KEPT.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    rows = [
        f"{kept['date']}, Python {kept['python']}, {versions}, {kept['cores']} cores of a shared "
        f"machine (load {kept['load']:g} over the last 15 minutes).",
        "",
        "| | chips | mesh | compiled in | memory of the compiler | of one chip | planned | "
        "of | collectives of a step, bytes that a chip receives |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for preset, found in kept["cases"].items():
        said, memory = found["compiled"], found["memory"]
        mesh = " ".join(f"{axis}={n}" for axis, n in found["mesh"].items() if n > 1)
        kinds = ", ".join(
            f"{each['count']:,} {kind} {size(each['bytes'])}"
            for kind, each in said["collectives"].items()
        )
        cells = (
            f"`{preset}`",
            found["device"],
            mesh,
            f"{said['seconds']:.0f} s",
            size(said["process_bytes"]),
            size(said["peak"]),
            size(memory["total"]),
            size(memory["limit"]),
            kinds,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def fits():
    rows = ["| run | published | planned | error |", "|---|---|---|---|"]
    for row in published.rows(ROOT / "tests/plan/published.yaml"):
        said = row.predicted()
        rows.append(f"| {row.name} | {row.mfu:.1%} | {said:.1%} | {said / row.mfu - 1:+.1%} |")
    fit = steptime.table()["fit"]
    for name, words in (("in_sample", "all rows fitted to"), ("left_out", "each row left out")):
        mean, most = fit[name]["mean"], fit[name]["most"]
        rows.append(f"| **{words}** | | | mean {mean:.1%}, most {most:.1%} |")
    return rows


def known():
    rows = [
        "| name | memory | peak | price of a device and hour | watts |",
        "|---|---|---|---|---|",
    ]
    for device in devices().values():
        price, watts = device.price, device.watts
        cells = (
            f"`{device.name}`",
            size(device.memory) if device.memory else "not known",
            f"{device.peak / 1e12:g} TFLOP/s" if device.peak else "not known",
            f"${price.dollars:.2f}, {price.date}" if price else "not known",
            f"{watts:g}" if watts else "not published",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


TABLES = {"compiled": compiled, "fits": fits, "devices": known}


def page(text):
    """docs/planning.md with its tables as they are now."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: tools/plan_tables.py -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n".join(table()) + "\n" + end + rest.partition(end)[2]
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true")
    if parser.parse_args().compile:
        compile_all()
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
