"""Check jaxlm on this machine's GPU, then measure it there.

    python tools/gpu_check.py [--rounds 5] [--out benchmarks/]
    python tools/gpu_check.py --cpu        what a machine without one can run

Numerics of every attention backend, the packed kernel's own test, a step of each objective, the
memory of a step, and the benchmark's GPU cases. Writes gpu_check-DEVICE.json; exits 1 on a failure.
"""

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
if find_spec("jaxlm") is None:
    sys.path.insert(1, str(CHECKOUT))

from measure import results  # noqa: E402
from measure.cases import CASES  # noqa: E402
from measure.pipe import Answer, Side, SideError  # noqa: E402
from measure.run import measure  # noqa: E402

from jaxlm.core.errors import ConfigError  # noqa: E402
from jaxlm.core.platform import accelerators, choose_platform  # noqa: E402

CASES_HERE = {
    "gpu": ("gpu-124m", "gpu-1b", "lora-8b", "lora-8b-nf4", "attention-long"),
    "cpu": ("tiny",),
}
MEMORY_CASE = {"gpu": "gpu-124m", "cpu": "tiny"}


def main() -> int:
    """Returns 0 when everything passed or there is no GPU to check, else 1."""
    options = _options()
    kind = "cpu" if options.cpu else "gpu"
    if kind == "gpu" and "gpu" not in accelerators():
        print("no GPU here; --cpu runs the portable parts")
        return 0
    try:
        choose_platform(kind)
    except ConfigError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    if kind == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    found = _checks(MEMORY_CASE[kind])
    for line in found["checks"]:
        print(_line(line), flush=True)
    found["measured"], found["failed"] = _measured(CASES_HERE[kind], options)
    path = options.out / f"gpu_check-{results.slug(found['machine']['device'])}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    bad = [line for line in found["checks"] if not line["passed"]]
    print(f"\n{len(found['checks']) - len(bad)} checks passed, {len(bad)} failed\n{path}")
    return 1 if bad or found["failed"] else 0


def _checks(case: str) -> Answer:
    side = Side("checks", {})
    try:
        found = side.ask({"do": "check", "case": case})
    except SideError as error:
        line = {"check": "the device", "passed": False, "value": str(error), "wanted": "to run"}
        found = {"device": "unknown", "checks": [line]}
    finally:
        side.close()
    return {
        "format": results.FORMAT,
        "kind": "checks",
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": results.machine(found["device"]),
        "versions": results.versions(),
        "checks": found["checks"],
    }


def _measured(names: tuple[str, ...], options: argparse.Namespace) -> tuple[list[str], Answer]:
    """(files written, case -> why it failed)."""
    written, failed = [], {}
    for name in names:
        print(f"\n{name}: {CASES[name].says}", flush=True)
        try:
            result = measure(name, rounds=options.rounds, alone=options.alone, say=_say)
        except SideError as error:
            failed[name] = str(error)
            print(f"failed: {error}", flush=True)
            continue
        written.append(results.write(result, options.out).name)
        print(results.table([result]), flush=True)
    return written, failed


def _line(check: Answer) -> str:
    value = check["value"]
    shown = f"{value:.3g}" if isinstance(value, float) else value
    word = "ok    " if check["passed"] else "FAILED"
    return f"{word}  {check['check']:<64}{shown} (wanted: {check['wanted']})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="the portable parts, on the CPU")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every side")
    parser.add_argument("--alone", action="store_true", help="leave torch out")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "benchmarks")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
