"""The plan of rows: every example once, no row too long, and few rows."""

import numpy as np
import pytest

from jaxlm.data.bins import plan


@pytest.mark.parametrize("seed", range(5))
def test_every_example_is_in_one_row_and_no_row_is_too_long(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 65, 300)
    rows = plan(sizes, 64)
    assert sorted(number for row in rows for number in row) == list(range(300))
    assert max(sizes[row].sum() for row in rows) <= 64
    least = -(-sizes.sum() // 64)
    assert len(rows) <= 11 / 9 * least + 1
    assert rows == plan(sizes, 64) and rows == sorted(rows)


def test_what_fits_together_exactly_is_put_together():
    assert len(plan([40, 24, 50, 14, 64, 1, 63], 64)) == 4


def test_nothing_and_one():
    assert plan([], 8) == [] and plan([8], 8) == [[0]]
