"""The table of families in the docs, from checks on the golden fixtures.

python tests/families/table.py      # docs/families.json and docs/families.md
"""

import json
import math
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

CHECKOUT = Path(__file__).resolve().parents[2]
STORED, PAGE = CHECKOUT / "docs" / "families.json", CHECKOUT / "docs" / "families.md"
TYPES, BOUND = ("float32", "bfloat16", "float16"), 2e-4
HEAD = ("family", "configurations", "import", "export", "logits difference", "generate", "train")
TEXT = """# Families

What the families of `jaxlm/families/` were checked to do, on small networks of transformers whose
options and weights are off their defaults. `python tests/families/table.py` makes this page;
`tests/families/test_golden.py` and `test_generation.py` hold the same for every change, and
`tests/run.sh --peers` compares with transformers itself.

{table}

- import: config.json and the weights are read whole, on one device and sharded over 4 x 2 (fsdp x
  tensor).
- export: every tensor that transformers reads comes back byte for byte, in the types that are
  named.
- logits difference: from those of transformers {transformers}, as a share of the largest logit, in
  float32, the larger of one device and eight. The bound is 2e-4.
- generate: greedy tokens with the cache of keys and values are those without it.
- train: the loss of a step of causal language modeling, and after it.

Measured {date} on {device} with {versions}.
"""


def measure():
    """Every check, as docs/families.json holds it."""
    from families import checks, golden
    from measure.results import cpu_model

    from jaxlm.families import FAMILIES

    found = {family: {} for family in FAMILIES}
    for name in golden.NAMES:
        print(name, file=sys.stderr, flush=True)
        found[golden.CONFIGS[name]["model_type"]][name] = shown(name)
    made = {checks.opened(name).config["transformers_version"] for name in golden.NAMES}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": cpu_model(),
        "versions": {name: metadata.version(name) for name in ("jaxlm", "jax", "flax", "numpy")},
        "transformers": ", ".join(sorted(made)),
        "families": found,
    }


def shown(name):
    """What one fixture shows; null for what its kind of network has not."""
    from families import checks

    generates = checks.generates(name)
    spec = checks.opened(name).spec
    trains = spec.structure == "decoder" and not spec.head.labels
    with TemporaryDirectory() as out:
        read = checks.in_every_type(name, Path(out))
    return {
        "export": [dtype for dtype, params in read.items() if checks.is_file(name, params, dtype)],
        "difference": max(checks.difference(name), checks.difference(name, **checks.MESH)),
        "generate": checks.with_cache(name) == checks.without_cache(name) if generates else None,
        "train": checks.trained(name) if trains else None,
    }


def page(stored):
    """docs/families.md of what docs/families.json holds."""
    rows = [HEAD, ["---"] * len(HEAD)]
    for family, fixtures in stored["families"].items():
        rows.append((f"`{family}`", str(len(fixtures)), *_cells(list(fixtures.values()))))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    versions = ", ".join(f"{name} {version}" for name, version in stored["versions"].items())
    return TEXT.format(**{**stored, "table": table, "versions": versions})


def _cells(fixtures):
    if not fixtures:
        return ["not checked"] * 5
    largest = max(one["difference"] for one in fixtures)
    types = [dtype for dtype in TYPES if all(dtype in one["export"] for one in fixtures)]
    tokens = [one["generate"] for one in fixtures if one["generate"] is not None]
    losses = [one["train"] for one in fixtures if one["train"] is not None]
    return (
        "yes",
        f"identical: {', '.join(types)}" if types else "no",
        f"{largest:.1e}" if largest < BOUND else f"{largest:.1e}: too much",
        ("the same" if all(tokens) else "not the same") if tokens else "n/a",
        _losses(losses) if losses else "n/a",
    )


def _losses(losses):
    """The step that lowered the loss least."""
    first, second, norm = min(losses, key=lambda one: one[0] - one[1])
    well = math.isfinite(norm) and norm > 0 and second < first
    return f"{first:.3f}, {second:.3f}" + ("" if well else ": does not learn")


if __name__ == "__main__":
    sys.path[:0] = [str(CHECKOUT / "tests"), str(CHECKOUT / "tools")]
    import conftest  # noqa: F401 (eight fake devices)

    STORED.write_text(json.dumps(measure(), indent=1) + "\n")
    PAGE.write_text(page(json.loads(STORED.read_text())))
