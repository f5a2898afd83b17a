"""What an evaluation says of each label: in confusion.json of a run, beside its columns."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config.objectives import Labels, TokenClassification
from jaxlm.config.schema import RunConfig
from jaxlm.core import distributed
from jaxlm.objectives import entities
from jaxlm.observe.metrics import replace

FILE = "confusion.json"
Table = dict[str, Any]


def tables(config: RunConfig, extra: Mapping[str, Any]) -> Table:
    """labels: precision, recall, f1 and count of each, and of each type of entity; confusion [C, C]
    as lists, rows the truth. extra: as the objective's sums have it. Empty of other objectives.
    """
    chosen = config.objective
    if not isinstance(chosen, Labels) or not ("confusion" in extra or "matches" in extra):
        return {}
    if "matches" in extra:
        return {"labels": _each(chosen.labels, extra["matches"])}
    table = np.asarray(extra["confusion"], np.int64)
    sides = np.stack([np.diag(table), table.sum(0), table.sum(1)], axis=1)
    found: Table = {"labels": _each(chosen.labels, sides)}
    scheme = entities.scheme(chosen.labels) if isinstance(chosen, TokenClassification) else None
    if scheme and "entities" in extra:
        found["entities"] = _each(scheme.types, extra["entities"])
    return found | {"confusion": table.tolist()}


def write(folder: Path, step: int, found: Table) -> None:
    """Put the tables of a step into a run's folder, instead of those that are there."""
    body = json.dumps({"step": step, **found}, ensure_ascii=False) + "\n"
    distributed.agree("confusion", lambda: replace(folder / FILE, body.encode()))


def lines(found: Table, most: int = 12) -> list[str]:
    """A confusion matrix as a person reads it, of up to `most` labels."""
    if "confusion" not in found or len(found["labels"]) > most:
        return []
    names = list(found["labels"])
    wide = max(map(len, [*names, "true"])) + 2
    cells = [[str(each) for each in row] for row in found["confusion"]]
    widths = [max(map(len, column)) + 2 for column in zip(names, *cells, strict=True)]

    def line(first: str, rest: Sequence[str]) -> str:
        return f"{first:<{wide}}" + "".join(
            f"{each:>{width}}" for each, width in zip(rest, widths, strict=True)
        )

    rows = (line(name, row) for name, row in zip(names, cells, strict=True))
    return [line("true", names), *rows]


def _each(names: Sequence[str], table: Any) -> dict[str, dict[str, float | None]]:
    """Of [C, 3], how often right, found and there."""
    rows = np.asarray(table, np.float64).tolist()
    return {
        name: {
            "precision": right / found if found else None,
            "recall": right / there if there else None,
            "f1": 2 * right / (found + there) if found + there else None,
            "count": int(there),
        }
        for name, (right, found, there) in zip(names, rows, strict=True)
    }
