"""What is masked has the papers' shares, whatever the row; and never what may not be."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data import masking
from jaxlm.data.noise import generator

LENGTH, MASK, VOCAB = 256, 3, 1000
OTHERS = np.arange(10, VOCAB, dtype=np.int32)


def row(seed, length=LENGTH):
    """Ids, where no special token is, and where words of one to four tokens begin."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(10, VOCAB, length).astype(np.int32)
    may, starts = np.ones(length, bool), rng.random(length) < 0.5
    may[[0, length // 3, length - 1]] = False
    ids[~may] = 2
    starts[0] = True
    return ids, may, starts


def masked(seed, unit="token", rate=0.15, hidden=0.8, random=0.1, length=LENGTH):
    ids, may, starts = row(seed, length)
    at, found = masking.mask_row(
        ids,
        generator(seed),
        may=may,
        starts=starts,
        rate=rate,
        hidden=hidden,
        random=random,
        unit=unit,
        mask=MASK,
        others=OTHERS,
    )
    return ids, may, starts, at, found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["token", "word", "span"]),
    st.floats(0.01, 0.9),
    st.integers(3, 90),
)
def test_so_many_are_masked_and_none_that_may_not_be(seed, unit, rate, length):
    ids, may, _, at, found = masked(seed, unit, rate, length=length)
    wanted = max(1, round(rate * may.sum())) if may.any() else 0
    assert at.size == wanted if unit == "token" else min(1, wanted) <= at.size <= wanted
    assert may[at].all() and (np.diff(at) > 0).all()
    untouched = np.setdiff1d(np.arange(length), at)
    assert (found[untouched] == ids[untouched]).all()


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_eighty_ten_ten(unit):
    fates = Counter()
    for seed in range(600):
        ids, _, _, at, found = masked(seed, unit)
        fates["hidden"] += (found[at] == MASK).sum()
        fates["kept"] += (found[at] == ids[at]).sum()
        fates["all"] += at.size
    error = 4 * np.sqrt(0.8 * 0.2 * (4 if unit == "span" else 1) / fates["all"])
    assert fates["hidden"] / fates["all"] == pytest.approx(0.8, abs=error)
    assert fates["kept"] / fates["all"] == pytest.approx(0.1, abs=error)


def test_every_token_is_as_likely_as_another():
    counts = np.zeros(LENGTH)
    for seed in range(2000):
        *_, at, _ = masked(seed)
        counts[at] += 1
    share = np.delete(counts, [0, LENGTH // 3, LENGTH - 1]) / 2000
    assert abs(share - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / 2000)


@pytest.mark.parametrize("unit", ["word", "span"])
def test_a_masked_word_is_masked_whole(unit):
    for seed in range(50):
        _, may, starts, at, _ = masked(seed, unit)
        begins = starts | ~may | np.append(True, ~may[:-1])
        word = np.cumsum(begins)
        inside = np.isin(np.arange(LENGTH), at)
        for name in np.unique(word[at]):
            assert inside[word == name].all()


@pytest.mark.parametrize("unit", ["word", "span"])
def test_words_fill_the_budget_but_for_less_than_a_word(unit):
    """Words of one token are among those left, so nothing is."""
    for seed in range(50):
        _, may, _, at, _ = masked(seed, unit)
        assert at.size == round(0.15 * may.sum())


@pytest.mark.parametrize("unit", ["word", "span"])
def test_a_word_longer_than_the_budget_is_masked_in_part(unit):
    ids = np.arange(10, 50, dtype=np.int32)
    at, _ = masking.mask_row(
        ids,
        generator(1),
        may=np.ones(40, bool),
        starts=np.arange(40) % 20 == 0,
        rate=0.1,
        hidden=0.8,
        random=0.1,
        unit=unit,
        mask=MASK,
        others=OTHERS,
    )
    assert at.tolist() in ([0, 1, 2, 3], [20, 21, 22, 23])


def test_spans_are_geometric_clipped_at_ten_and_of_one_fate():
    chances = 0.2 * 0.8 ** np.arange(10)
    mean = (np.arange(1, 11) * chances).sum() / chances.sum()
    assert mean == pytest.approx(3.8, abs=0.02)  # Joshi et al. 2020, section 3.1
    assert (np.searchsorted(masking.SPANS, np.linspace(0, 0.9999, 10**5)) + 1).mean() == (
        pytest.approx(mean, rel=1e-3)
    )
    word = np.arange(2000)
    _, span = masking._spans(word, 100, generator(1))
    lengths = np.bincount(span)
    assert lengths.max() <= 10 and lengths.sum() == 100
    alike = []
    for seed in range(60):
        *_, at, found = masked(seed, "span", hidden=0.5, random=0.0)
        runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
        alike += [len({*(found[run] == MASK)}) == 1 for run in runs if run.size > 2]
    assert np.mean(alike) > 0.6  # spans may touch; tokens by themselves would be at most 1/4


def test_noise_is_a_function_of_its_key():
    assert (generator(1, 2).random(5) == generator(1, 2).random(5)).all()
    assert (generator(1, 2).random(5) != generator(2, 1).random(5)).all()
    first = hashlib.sha256(generator(7, 11).random(64).tobytes()).hexdigest()
    assert first[:16] == "2344cad8ad9c8913"
