"""What of a model a run trains, and what that takes: said before the first step, and kept."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxlm.core import tree
from jaxlm.core.parts import TYPES, type_of, whole
from jaxlm.core.tree import Mask, Params
from jaxlm.core.words import count, size
from jaxlm.models.quantize import numbers, total

FILE = "trainable.json"
Receipt = dict[str, Any]


def receipt(
    matched: dict[str, list[str]],
    params: Params,
    mask: Mask,
    opt_state: Any,
    new: Iterable[str] = (),
) -> Receipt:
    """The counts, for a file.

    matched: of each pattern the names that it means. params, opt_state: arrays or
    ShapeDtypeStructs, counted whole, on however many devices they lie. A gradient has the type of
    its parameter. new: the leaves that `init` lacks.
    """
    leaves = tree.flatten(params)
    live, _ = tree.partition(params, mask)
    types: dict[str, dict[str, int]] = {}
    for name, leaf in leaves.items():
        row = types.setdefault(type_of(name), {"parameters": 0, "trained": 0})
        row["parameters"] += numbers(name, leaf)
        row["trained"] += numbers(name, leaf) * (name in mask)
    every, trained = total(params), total(live)
    return {
        "patterns": {
            pattern: {
                "tensors": len(set(map(whole, names))),
                "parameters": sum(leaves[name].size for name in names),
            }
            for pattern, names in matched.items()
        },
        "types": {kind: types[kind] for kind in [*TYPES, "other"] if kind in types},
        "parameters": every,
        "trained": trained,
        "share": trained / every,
        "new": list(new),
        "bytes": {
            "weights": tree.nbytes(params),
            "gradients": tree.nbytes(live),
            "optimizer": tree.nbytes(opt_state),
        },
    }


def lines(found: Receipt) -> list[str]:
    """As a person reads it before the first step; one line where everything trains."""
    kept = ", ".join(f"{what} {size(number)}" for what, number in found["bytes"].items())
    all_of, some = count(found["parameters"]), count(found["trained"])
    new = [f"  new, and random: {', '.join(found['new'])}"] if found["new"] else []
    if found["trained"] == found["parameters"]:
        return [f"trains all of {all_of} parameters: {kept}", *new]
    meant = [
        f"{pattern} ({each['tensors']} tensors, {count(each['parameters'])})"
        for pattern, each in found["patterns"].items()
    ]
    return [
        f"trains {some} of {all_of} parameters ({100 * found['share']:.3g}%): {', '.join(meant)}",
        *(
            f"  {kind:<11}{count(each['trained']):>7} of {count(each['parameters'])}"
            for kind, each in found["types"].items()
        ),
        f"  {kept}",
        *new,
    ]


def write(found: Receipt, folder: Path) -> None:
    """Into the run's folder."""
    (folder / FILE).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
