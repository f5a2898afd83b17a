"""A step case: jaxlm and torch take turns in one go, and every round gives a ratio."""

import math
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from jaxlm.observe.flops import mfu
from measure.cases import StepCase
from measure.pipe import Answer, Side, SideError, cores

OURS = "jaxlm"
MODULES = {
    OURS: "jax_side",
    "torch eager": "torch_side",
    "torch compiled": "torch_side",
    "trl": "trl_side",
}
"""The programs of the sides."""
Say = Callable[[str], None]


def run(case: StepCase, *, rounds: int, steps: int | None, alone: bool, say: Say) -> Answer:
    """The figures of a step case.

    rounds: turns of every side. steps: updates in a turn, the case's own by default. alone:
    leave torch out. Raises SideError when jaxlm's side cannot run.
    """
    sides: dict[str, Side] = {}
    built: dict[str, Answer] = {}
    failed: dict[str, str] = {}
    try:
        for name in (OURS, *(() if alone else case.beside)):
            try:
                side, built[name] = _start(name, case)
                sides[name] = side
            except SideError as error:
                if name == OURS:
                    raise
                failed[name] = str(error)
            say(f"{name}: {failed.get(name) or _words(built[name])}")
        turns: dict[str, list[Answer]] = {name: [] for name in sides}
        for number in range(rounds):
            names = list(sides)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                turns[name].append(sides[name].ask({"do": "run", "steps": steps or case.steps}))
            say(f"round {number + 1} of {rounds}: {_round(turns, _tokens(case, steps))}")
    finally:
        for side in sides.values():
            side.close()
    found = {name: _summary(built[name], turns[name], _tokens(case, steps)) for name in sides}
    flops, peak = built[OURS]["flops_per_token"], built[OURS]["peak_flops"]
    for name in found:
        found[name]["mfu"] = mfu(found[name]["tokens_per_second"], flops, peak, 1)
    return {
        "kind": "step",
        "device": built[OURS]["device"],
        "flops_per_token": flops,
        "flops_formula": built[OURS]["flops_formula"],
        "expected_first_loss": expected_loss(case.shape["model"]),
        "sides": found,
        "failed": failed,
        **_ratio(found),
    }


def expected_loss(model: dict[str, Any]) -> float:
    """The loss of a fresh network: log V, and half the variance of its logits (0.02^2 x D)."""
    return math.log(model["vocab"]) + 0.5 * 0.02**2 * model["embed"]


def same_network(result: Answer) -> list[str]:
    """What shows that the sides did not compute the same thing; empty when they did."""
    sides, expected = result["sides"], result["expected_first_loss"]
    wrong = []
    for name, side in sides.items():
        if abs(side["first_loss"] - expected) > 0.15:
            wrong.append(f"{name}: first loss {side['first_loss']:.3f}, expected {expected:.3f}")
        if side["parameters"] != sides[OURS]["parameters"]:
            wrong.append(
                f"{name}: {side['parameters']} parameters, {OURS} {sides[OURS]['parameters']}"
            )
    return wrong


def _start(name: str, case: StepCase) -> tuple[Side, Answer]:
    if name != OURS and (missing := [m for m in ("torch", "transformers") if not find_spec(m)]):
        raise SideError(f"not installed: {', '.join(missing)}")
    threads = str(cores())
    environment = {"JAX_ENABLE_COMPILATION_CACHE": "false", "OMP_NUM_THREADS": threads}
    if name == OURS and case.platform == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    side = Side(MODULES[name], environment)
    order = {"do": "build", "shape": case.shape, "platform": case.platform}
    try:
        return side, side.ask({**order, "mode": "compile" if name == "torch compiled" else "eager"})
    except SideError:
        side.close()
        raise


def _tokens(case: StepCase, steps: int | None) -> int:
    """Tokens in one turn."""
    return case.shape["batch"] * case.shape["length"] * (steps or case.steps)


def _summary(built: Answer, turns: list[Answer], tokens: int) -> Answer:
    rates = [tokens / turn["seconds"] for turn in turns]
    return {
        "parameters": built["parameters"],
        "first_loss": built["first_loss"],
        "last_loss": turns[-1]["loss"],
        "compile_seconds": built["compile_seconds"],
        "temporary_bytes": built.get("temporary_bytes"),
        "argument_bytes": built.get("argument_bytes"),
        "peak_bytes": turns[-1]["peak_bytes"],
        "checkpointing": built.get("checkpointing"),
        "tokens_per_second": statistics.median(rates),
        "rounds": {
            "tokens_per_second": rates,
            "cpu_seconds": [turn["cpu_seconds"] for turn in turns],
        },
    }


def _ratio(found: dict[str, Answer]) -> Answer:
    """Ours over the better torch: the median of the rounds' ratios, in time and in CPU time."""
    others = [name for name in found if name != OURS]
    if not others:
        return {"ratio": None}
    best = max(others, key=lambda name: found[name]["tokens_per_second"])
    ours, theirs = found[OURS]["rounds"], found[best]["rounds"]
    faster = zip(ours["tokens_per_second"], theirs["tokens_per_second"], strict=True)
    per_round = [a / b for a, b in faster]
    cheaper = zip(theirs["cpu_seconds"], ours["cpu_seconds"], strict=True)
    return {
        "ratio": statistics.median(per_round),
        "ratio_against": best,
        "ratio_per_round": per_round,
        "ratio_of_cpu_seconds": statistics.median(a / b for a, b in cheaper),
    }


def _words(built: Answer) -> str:
    return (
        f"{built['parameters'] / 1e6:.1f}M parameters, first loss {built['first_loss']:.3f}, "
        f"compiled in {built['compile_seconds']:.1f} s"
    )


def _round(turns: dict[str, list[Answer]], tokens: int) -> str:
    return ", ".join(
        f"{name} {tokens / turn[-1]['seconds']:,.0f} tokens/s ({turn[-1]['cpu_seconds']:.1f} CPU s)"
        for name, turn in turns.items()
    )
