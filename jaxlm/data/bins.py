"""Which examples share a row: a plan made of their lengths alone."""

from collections.abc import Sequence

import numpy as np


def plan(lengths: Sequence[int] | np.ndarray, room: int) -> list[list[int]]:
    """Rows of example numbers, each example in one, no row longer than `room`.

    Best fit, the longest examples first (Johnson 1974): at most 11/9 of the fewest rows there can
    be. Deterministic; rows are in the order of their first example. Lengths are from 1 to `room`.
    """
    rows: list[list[int]] = []
    free: list[list[int]] = [[] for _ in range(room + 1)]  # by how much room is left: rows
    occupied = 0  # bit i: some row has room for exactly i more
    sizes = np.asarray(lengths)
    for number in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[number])
        fitting = occupied >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            row = free[left].pop()
            if not free[left]:
                occupied &= ~(1 << left)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(number)
        if left > size:
            free[left - size].append(row)
            occupied |= 1 << (left - size)
    for row in rows:
        row.sort()
    return sorted(rows)
