"""Measure jaxlm: full training steps beside torch, and figures of single parts.

    python tools/bench.py CASE ... [--rounds 5] [--steps N] [--alone] [--out benchmarks/]
    python tools/bench.py --list
    python tools/bench.py --table        docs/benchmarks.md from benchmarks/*.json

Writes one JSON file per case and machine, and prints its table.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
if find_spec("jaxlm") is None:
    sys.path.insert(1, str(CHECKOUT))

from measure import results  # noqa: E402
from measure.cases import CASES  # noqa: E402
from measure.pipe import SideError  # noqa: E402
from measure.run import measure  # noqa: E402


def main() -> int:
    """Returns 0, 1 when a case failed or missed its target, 2 for a case that does not exist."""
    options = _options()
    if options.list:
        for name, case in CASES.items():
            print(f"{name:<16}{case.platform:<5}{case.says}")
    for name in options.cases:
        if name not in CASES:
            print(f"bench: {name}: no such case; use {', '.join(CASES)}", file=sys.stderr)
            return 2
    good = [_measure(name, options) for name in options.cases]
    if options.table:
        results.update_docs(CHECKOUT / "docs" / "benchmarks.md", options.out)
    return 0 if all(good) else 1


def _measure(name: str, options: argparse.Namespace) -> bool:
    _say(f"{name}: {CASES[name].says}")
    try:
        result = measure(
            name,
            rounds=options.rounds,
            steps=options.steps,
            alone=options.alone,
            texts=options.texts,
            say=_say,
        )
    except SideError as error:
        print(f"bench: {name}: {error}", file=sys.stderr)
        return False
    path = results.write(result, options.out)
    print(f"{results.table([result])}\n\n{path}")
    return all(target["met"] for target in result["targets"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="see --list")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every side")
    parser.add_argument("--steps", type=int, help="steps in a turn; the case's own by default")
    parser.add_argument("--alone", action="store_true", help="leave torch out")
    parser.add_argument("--texts", metavar="FILE", help="of `sentences`: text<TAB>label in lines")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "benchmarks")
    parser.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument("--table", action="store_true", help="renew the table in the docs")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
