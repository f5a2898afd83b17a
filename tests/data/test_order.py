import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.order import PERIOD, Mixture, shuffled


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 5))
def test_each_pass_has_each_row_once(size, seed, passes):
    index = np.arange(passes * size, (passes + 1) * size)
    assert sorted(shuffled(index, size, (seed,))) == list(range(size))


@settings(deadline=None)
@given(st.integers(1, 500), st.lists(st.integers(0, 10**15), min_size=1, max_size=20))
def test_a_row_does_not_depend_on_the_others_asked_for(size, index):
    together = shuffled(np.array(index), size, (3,))
    alone = [shuffled(np.array([i]), size, (3,))[0] for i in index]
    assert together.tolist() == alone


def test_passes_seeds_and_sources_differ():
    size, index = 1000, np.arange(1000)
    orders = [
        shuffled(index, size, (1,)),
        shuffled(index + size, size, (1,)),
        shuffled(index, size, (2,)),
        shuffled(index, size, (1, 1)),
        index,
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).mean() < 0.02


def test_the_order_looks_random():
    size = 50_000
    order = shuffled(np.arange(size), size, (7,))
    ahead = np.diff(order)
    assert abs((ahead > 0).mean() - 0.5) < 0.01
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.02
    counts = np.bincount(order[: size // 2] * 20 // size, minlength=20)
    assert counts.min() > 0.9 * size / 40


def test_the_order_stays_what_it_was():
    """A run that resumes under a later version must see the rows it would have seen."""
    assert shuffled(np.arange(10), 10, (0,)).tolist() == [6, 0, 2, 7, 1, 8, 5, 3, 9, 4]


@pytest.mark.parametrize("weights", [(1.0,), (0.7, 0.3), (5.0, 3.0, 2.0), (1.0, 1e-9), (0.1,) * 30])
def test_a_mixture_has_its_shares_everywhere_and_skips_no_row(weights):
    start, rows = 3 * PERIOD - 500, 4000
    source, drawn = Mixture(weights).draw(np.arange(start, start + rows))
    for number, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs((source == number).sum() - share * rows) <= 2 + rows * 30 / PERIOD
        own = drawn[source == number]
        assert (np.diff(own) == 1).all()


def test_a_mixture_counts_from_the_start():
    source, drawn = Mixture((0.6, 0.4)).draw(np.arange(100))
    for number in (0, 1):
        assert drawn[source == number].tolist() == list(range((source == number).sum()))
