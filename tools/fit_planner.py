"""Fit the constants of the planner's step time to published runs, and write how well they fit.

python tools/fit_planner.py [--write] [FILE]: the default FILE is tests/plan/published.yaml. Prints
every row with its error when it is fitted to (in) and when it is left out of the fit (out).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import yaml
from scipy.optimize import least_squares

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import published  # noqa: E402

PRIORS = {
    "products_v5e": (0.85, 0.5, 0.95, "share of the peak that products reach"),
    "products_v5p": (0.85, 0.5, 0.95, "as above"),
    "products_v6e": (0.75, 0.5, 0.95, "as above"),
    "products_h100": (0.65, 0.4, 0.95, "as above"),
    "products_h200": (0.65, 0.4, 0.95, "as above"),
    "attention": (0.65, 0.3, 1.0, "speed of attention's products against the others'"),
    "glue": (1.5, 0.5, 4.0, "passes over activations between products, against the counted ones"),
    "recompute": (0.5, 0.0, 1.0, "of remat=products: passes more, beside three"),
    "jitter": (0.02, 0.0, 0.05, "longer for each doubling of hosts or slices"),
    "overlap_tpu": (0.5, 0.0, 0.95, "share of computation that hides gathers and scatters"),
    "overlap_gpu": (0.5, 0.0, 0.95, "as above"),
    "overlap_tensor_tpu": (0.4, 0.0, 0.95, "share of tensor-parallel traffic that is hidden"),
    "overlap_tensor_gpu": (0.4, 0.0, 0.95, "as above"),
}
"""Name -> what is likely before any run is seen, the least, the most, and what it means."""
PULL = 0.05
"""How strongly a constant is held to what is likely, in units of a relative error of a row for a
constant that is off by a quarter of its range: few rows tell some of them apart."""


def fit(rows):
    start, low, high = (np.array([row[i] for row in PRIORS.values()]) for i in range(3))

    def residuals(x):
        constants = dict(zip(PRIORS, x, strict=True)) | EXTRA
        errors = [np.log(row.predicted(constants) / row.mfu) for row in rows]
        return np.array([*errors, *(PULL * (x - start) / ((high - low) / 4))])

    x = least_squares(residuals, start, bounds=(low, high)).x
    return {name: round(float(value), 4) for name, value in zip(PRIORS, x, strict=True)} | EXTRA


EXTRA = {"products_gpu": 0.6, "products_tpu": 0.85}
"""For devices that no row is of."""


def summary(errors):
    errors = np.abs(errors)
    return {
        "mean": round(float(errors.mean()), 4),
        "median": round(float(np.median(errors)), 4),
        "most": round(float(errors.max()), 4),
    }


def ranges(rows):
    """The least and the most of each size that the rows have."""
    sizes = {
        "parameters": [row.load.parameters for row in rows],
        "length": [row.length for row in rows],
        "devices": [row.machine.count for row in rows],
    }
    return {name: [int(min(found)), int(max(found))] for name, found in sizes.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", default=ROOT / "tests/plan/published.yaml")
    parser.add_argument("--write", action="store_true", help="jaxlm/plan/constants.yaml")
    given = parser.parse_args()
    rows = published.rows(given.file)
    constants = fit(rows)
    inside = np.array([row.predicted(constants) / row.mfu - 1 for row in rows])
    outside = []
    for i, row in enumerate(rows):
        outside.append(row.predicted(fit(rows[:i] + rows[i + 1 :])) / row.mfu - 1)
    outside = np.array(outside)
    print(f"{'run':<58}{'published':>10}{'planned':>9}{'in':>8}{'out':>8}")
    for row, a, b in zip(rows, inside, outside, strict=True):
        print(f"{row.name:<58}{row.mfu:>10.1%}{row.mfu * (1 + a):>9.1%}{a:>+8.1%}{b:>+8.1%}")
    fits = {"rows": len(rows), "in_sample": summary(inside), "left_out": summary(outside)}
    fits["like"] = ranges(rows)
    print(fits)
    print(constants)
    if given.write:
        write(constants, fits)


def write(constants, fits):
    lines = [
        "# The constants of the planner's step time (steptime.py).",
        "# Fitted to tests/plan/published.yaml; written by: python tools/fit_planner.py --write",
        "# left_out: each row predicted by constants that were fitted to the others.",
        "# like: the least and the most that a row has; what is beyond is unchecked (likeness.py).",
        yaml.safe_dump({"fit": fits}, sort_keys=False).rstrip(),
        "constants:",
    ]
    for name, value in constants.items():
        what = PRIORS[name][3] if name in PRIORS else "of devices without a published row: assumed"
        at = ""
        if name in PRIORS and value in (PRIORS[name][1], PRIORS[name][2]):
            at = "; at its bound"
        source = "assumed" if name in EXTRA else "fitted" + at
        lines.append(f"  {name}: {{value: {value}, source: {source!r}, means: {what!r}}}")
    (ROOT / "jaxlm/plan/constants.yaml").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
