"""Published training runs as loads, and how near the planner's step times come to them."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jaxlm.plan.devices import Machine, machine
from jaxlm.plan.steptime import Constants, Load, step_time


class Row(NamedTuple):
    """A run: what a device does, on what, and the published share of the peak."""

    name: str
    load: Load
    machine: Machine
    length: int
    flops: float
    """Per token, by the convention that was published."""
    mfu: float

    def predicted(self, constants: Constants | None = None) -> float:
        """The planner's share of the peak."""
        time = step_time(self.load, self.machine, constants)
        assert time is not None and self.machine.device.peak
        return self.load.tokens * self.flops / (time.total * self.machine.device.peak)


def rows(file: str | Path) -> list[Row]:
    """The runs of a file like tests/plan/published.yaml."""
    found = yaml.safe_load(Path(file).read_text())
    return [_row(each, found["models"][each["model"]]) for each in found["rows"]]


def _row(row: dict[str, Any], model: dict[str, Any]) -> Row:
    layers, embed, mlp = model["layers"], model["embed"], model["mlp"]
    first, out = embed * mlp * (2 if model["gated"] else 1), embed * model["heads"]
    block = out + embed * (model["heads"] + 2 * model["kv"]) + first + embed * mlp
    head = embed * model["vocab"]
    full = 12 * layers * row["length"] * model["heads"]
    again, attention_again = AGAIN[row["remat"]]
    parts = {"first": first, "out": out, "half": block / 2, "all": block - embed * mlp}
    load = Load(
        tokens=row["tokens"],
        layers=layers,
        embed=embed,
        mlp=mlp,
        product_flops=6 * (layers * block + head),
        again_flops=2 * layers * sum(parts[part] for part in again),
        attention_flops=full / 2,
        attention_again=attention_again,
        parameters=layers * block + 2 * head,
        trained=layers * block + 2 * head,
        remat=row["remat"] if row["remat"] in ("none", "products") else "full",
        filled=row.get("bubble", 0.0),
        spread=True,
        **row["mesh"],
    )
    causal = row.get("flops") == "causal"
    name = f"{row['model']} on {row['device']} ({row['source']})"
    flops = load.product_flops + (full / 2 if causal else full)
    return Row(name, load, machine(row["device"]), row["length"], flops, row["mfu"] / 100)


AGAIN: dict[str, tuple[tuple[str, ...], bool]] = {
    "none": ((), False),
    "products": ((), False),
    "half": (("half",), False),
    "mlp": (("first",), False),
    "mlp+attention": (("first",), True),
    "all-but-qkv": (("first", "out"), True),
    "full": (("all",), True),
}
"""What a run keeps -> which products of a block are computed again, and whether attention is. The
MLP's last product never is: no gradient needs its result."""
