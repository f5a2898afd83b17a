"""The devices that a plan can be made for, and how many of them. The facts are in devices.yaml."""

import difflib
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from jaxlm.core.errors import ConfigError
from jaxlm.core.sizes import cubes

MOST = 10**6
"""Devices in one plan."""
WORDS = re.compile(r"(?P<name>[a-z0-9]+)(:(?P<size>\d+(x\d+)*))?(\*(?P<slices>\d+))?")
"""`h200:8`, `v5p:8x8x8`, and `v5e:16x16*4` for four slices."""


@dataclass(frozen=True)
class Price:
    """Dollars of one device and hour."""

    dollars: float
    date: str
    source: str


@dataclass(frozen=True)
class Device:
    """One device of a kind; None is what is not known. Units as in devices.yaml."""

    name: str
    kind: str
    platform: str
    torus: bool
    memory: float | None
    peak: float | None
    hbm: float | None
    near: float | None
    near_size: int
    far: float | None
    watts: float | None
    watts_source: str
    price: Price | None


@dataclass(frozen=True)
class Machine:
    """So many devices of one kind."""

    device: Device
    sides: tuple[int, ...]
    """Of one slice of a torus, else the number of devices alone."""
    slices: int = 1
    """Toruses that the data-center network joins."""

    @property
    def count(self) -> int:
        """Devices in all."""
        return math.prod(self.sides) * self.slices

    @property
    def topology(self) -> str:
        """As `--device` takes it, without the slices: also how libtpu names it."""
        return f"{self.device.name}:{'x'.join(map(str, self.sides))}"

    @property
    def domain(self) -> int:
        """Devices that the fast network joins."""
        near = self.device.near_size
        return math.prod(self.sides) if self.device.torus else min(near, self.count)

    def __str__(self) -> str:
        return self.topology + (f"*{self.slices}" if self.slices > 1 else "")


def machine(words: str) -> Machine:
    """The machine that `--device` names. Raises ConfigError with those that are known."""
    rows = _rows()
    found = WORDS.fullmatch(words.strip().lower())
    name = found["name"] if found else words.partition(":")[0]
    if not found or name not in rows:
        near = difflib.get_close_matches(name.lower(), rows, n=1)
        meant = f"did you mean {near[0]}? " if near and near[0] != name.lower() else ""
        known = ", ".join(_example(each, row) for each, row in rows.items())
        what = f"{words!r} is unknown" if words else "is missing"
        raise ConfigError("--device", f"{what}; {meant}known are {known}")
    row, slices = rows[name], int(found["slices"] or 1)
    sides = tuple(int(side) for side in (found["size"] or "1").split("x"))
    given = "x".join(map(str, sides))
    if math.prod(sides) * slices > MOST:
        raise ConfigError("--device", f"{words!r} is over {MOST:,} devices; write fewer")
    if row["shape"] == "torus":
        known = topologies(row)
        if given not in known:
            few = ", ".join([*known[:14], "..."] if len(known) > 14 else known)
            raise ConfigError("--device", f"{name} has no topology {given!r}; known are {few}")
    elif len(sides) > 1 or slices > 1:
        count = math.prod(sides) * slices
        raise ConfigError("--device", f"{words!r}: {name} is counted; write {name}:{count}")
    elif (size := row["near"]["size"]) < (count := math.prod(sides)) and count % size:
        lower, higher = count // size * size, (count // size + 1) * size
        wrong = f"{words!r}: hosts have {size} each; use {name}:{lower} or {name}:{higher}"
        raise ConfigError("--device", wrong)
    if not math.prod(sides) * slices:
        raise ConfigError("--device", f"{words!r} has no device; write {_example(name, row)}")
    return Machine(_device(name, row), sides, slices)


def of(devices: Sequence[Any]) -> Machine | None:
    """The machine that jax's devices are, all of one kind; None for a kind that is not listed, and
    where slices of TPUs have no topology, or not the same.
    """
    kind = devices[0].device_kind
    name = next((name for name, row in _rows().items() if _is(kind, row)), None)
    if name is None:
        return None
    row, slices = _rows()[name], 1
    sides: tuple[int, ...] | None = (len(devices),)
    if row["shape"] == "torus":
        places = defaultdict(list)
        for device in devices:
            places[getattr(device, "slice_index", 0)].append(device.coords)
        shapes = {_sides(coords, topologies(row)) for coords in places.values()}
        slices, sides = len(places), shapes.pop() if len(shapes) == 1 else None
    return Machine(_device(name, row), sides, slices) if sides else None


def _is(kind: str, row: dict[str, Any]) -> bool:
    """Whether jax calls the devices of a row so."""
    return row["kind"].lower() == kind.lower() or bool(
        row["platform"] == "gpu"
        and re.search(rf"\b{row['kind']}\b", kind)
        and not re.search(r"\b(NVL|PCIe|MIG|vGPU)\b", kind)  # less of the same chip
    )


def _sides(coords: Sequence[Sequence[int]], known: Sequence[str]) -> tuple[int, ...] | None:
    """The sides of the topology that chips at these places are; None where they are none."""
    spans = [max(axis) - min(axis) + 1 for axis in zip(*coords, strict=True)]
    if math.prod(spans) != len(coords):
        return None
    long = sorted(span for span in spans if span > 1)
    toruses = (tuple(int(side) for side in each.split("x")) for each in known)
    return next((t for t in toruses if sorted(side for side in t if side > 1) == long), None)


def devices() -> dict[str, Device]:
    """Every device by its name."""
    return {name: _device(name, row) for name, row in _rows().items()}


def toruses(name: str) -> list[str]:
    """The topologies of a device by its name; none where devices are counted."""
    row = _rows()[name]
    return topologies(row) if row["shape"] == "torus" else []


def topologies(row: dict[str, Any]) -> list[str]:
    """The toruses of a row, small ones first."""
    return list(row["sizes"]) + (cubes(*row["cube"]) if "cube" in row else [])


@cache
def _rows() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((Path(__file__).parent / "devices.yaml").read_text())


def _example(name: str, row: dict[str, Any]) -> str:
    return f"{name}:{row['sizes'][-1] if row['shape'] == 'torus' else 8}"


def _device(name: str, row: dict[str, Any]) -> Device:
    price, watts = row["price"], row["watts"] or {}
    return Device(
        name=name,
        kind=row["kind"],
        platform=row["platform"],
        torus=row["shape"] == "torus",
        memory=row["memory"],
        peak=row["peak"],
        hbm=row["hbm"],
        near=row["near"]["bandwidth"],
        near_size=row["near"]["size"],
        far=row["far"],
        watts=watts.get("number"),
        watts_source=watts.get("source", ""),
        price=Price(price["dollars"], str(price["date"]), price["source"]) if price else None,
    )
