"""Which checkpoints stay."""

from collections.abc import Mapping
from pathlib import Path

MARK = "KEEP"
"""A file in a checkpoint that says who needs it, a path a line: it is not removed."""


def need(checkpoint: Path, who: str) -> None:
    """Mark a checkpoint of another run as needed by `who`. Raises OSError where none may write."""
    with (checkpoint / MARK).open("a", encoding="utf-8") as file:
        file.write(f"{who}\n")


def kept(scores: Mapping[int, float | None], *, last: int, every: int, best: bool) -> set[int]:
    """The steps to keep, of the good checkpoints in `scores` (step -> score, lower is better).

    last: how many of the newest; every: multiples of it stay too, 0 none; best: the lowest score
    stays too, the newest of equals. The newest always stays.
    """
    steps = sorted(scores)
    keep = set(steps[-max(last, 1) :])
    if every:
        keep |= {step for step in steps if step % every == 0}
    scored = [(score, -step) for step, score in scores.items() if score is not None]
    if best and scored:
        keep.add(-min(scored)[1])
    return keep
