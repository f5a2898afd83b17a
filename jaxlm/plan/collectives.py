"""The collectives of a compiled program, read from its HLO: how often, and how many bytes.

A collective inside a loop counts for each of its iterations. What one device receives is counted:
of an all-reduce twice its share, once to add up and once to hand round.
"""

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

KINDS = "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r"[su]32\[\]\S* constant\((\d+)\)")
_SHAPE = re.compile(r"(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_FUSED = re.compile(r" fusion\(.*calls=%?([\w.\-]+)")
_OP = re.compile(r'op_name="([^"]*)"')
_BITS = {"pred": 8, "s4": 4, "u4": 4}


class Traffic(NamedTuple):
    """Of one kind of collective in one step."""

    count: int
    """How often it runs."""
    bytes: int
    """That one device receives."""


def collectives(hlo: str) -> dict[str, Traffic]:
    """Kind -> traffic of a compiled module's text; `ring` is a gather, or a scatter, that the
    compiler has cut into neighbors' exchanges around a matrix product.
    """
    bodies, entry = _computations(hlo)
    times = _times(bodies, entry)
    counts: Counter[str] = Counter()
    sizes: dict[str, float] = defaultdict(float)
    fused = {name for lines in bodies.values() for line in lines for name in _FUSED.findall(line)}
    seen = set()
    for name, lines in bodies.items():
        for line in lines:
            if not times[name] or not (found := _COLLECTIVE.search(line)):
                continue
            kind = found[2]
            if name in fused and (channel := _CHANNEL.search(line)):
                # One, in several steps beside computation. All of shard_map have one channel.
                same = channel[1], kind, *_OP.findall(line)
                if same in seen:
                    continue
                seen.add(same)
            label = "ring" if kind == "collective-permute" and "windowed" in name else kind
            counts[label] += times[name]
            sizes[label] += times[name] * _received(kind, bool(found[3]), found[1], line)
    return {kind: Traffic(counts[kind], round(sizes[kind])) for kind in sorted(counts)}


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """(lines of each computation, the name of the one that is run)."""
    found: dict[str, list[str]] = {}
    entry, at = "", ""
    for line in hlo.splitlines():
        if head := _HEAD.match(line):
            at = head[2]
            found[at] = []
            entry = at if head[1] else entry
        elif at:
            found[at].append(line)
    return found, entry


def _times(bodies: dict[str, list[str]], entry: str) -> Counter[str]:
    """How often each computation runs."""
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, lines in bodies.items():
        for line in lines:
            if loop := _WHILE.search(line):
                calls[name].append((loop[2], _trips(line, bodies.get(loop[1], []))))
            calls[name] += [(called, 1) for called in _CALLED.findall(line)]
            for branches in _BRANCHES.findall(line):
                calls[name] += [(each.strip(" %"), 1) for each in branches.split(",")]
    times: Counter[str] = Counter()

    def run(name: str, count: int) -> None:
        times[name] += count
        for called, trips in calls[name]:
            if called in bodies:
                run(called, count * trips)

    run(entry, 1)
    return times


def _trips(line: str, condition: list[str]) -> int:
    """Iterations of a loop: what XLA knows, or the constant that its counter is compared with."""
    if known := _KNOWN.search(line):
        return int(known[1])
    limits = [int(n) for each in condition for n in _LIMIT.findall(each)]
    return max(limits, default=1)


def _received(kind: str, started: bool, shape: str, line: str) -> float:
    """Bytes that a device receives in one collective."""
    found = _SHAPE.findall(shape)
    if started and kind != "all-reduce":  # ((operands), (results), counters), of one or of many
        found = [each for each in found if each != ("u32", "")]
        found = found[len(found) // 2 :]
    whole = sum(_bytes(*each) for each in found)
    if kind == "collective-permute":
        return whole
    size = _group(line)
    if kind == "all-reduce":
        return 2 * whole * (size - 1) / size
    return whole * (size - 1) / (1 if kind == "reduce-scatter" else size)


def _bytes(kind: str, dims: str) -> float:
    bits = _BITS.get(kind) or int((re.search(r"\d+", kind) or [8])[0])
    return math.prod(int(n) for n in dims.split(",") if n) * bits / 8


def _group(line: str) -> int:
    """Devices of a replica group, in the three ways that HLO writes them."""
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    return 2
