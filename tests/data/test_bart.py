"""BART's transformations: what each keeps, and the paper's numbers."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data import bart
from jaxlm.data.bart import HOLE
from jaxlm.data.noise import generator

MASK = 3


def row(seed, n):
    """Places, where no special token is, and where sentences end."""
    rng = np.random.default_rng(seed)
    may = rng.random(n) < 0.95
    may[[0, -1]] = False
    return np.arange(n), may, rng.random(n) < 0.15


def stretches(at, may):
    """The places between special tokens, one list for each stretch."""
    found = [[]]
    for each in at.tolist():
        if each != HOLE and not may[each]:
            found.append([])
        else:
            found[-1].append(each)
    return found


def everything(n, seed, noise):
    at, may, ends = row(seed, n)
    ids = (10 + at).astype(np.int32)
    made = bart.noised(ids, generator(seed), may=may, ends=ends, mask=MASK, noise=noise)
    return ids, may, made


ROWS = settings(max_examples=60, deadline=None)
SEEDS, SIZES = st.integers(0, 10**6), st.integers(2, 120)


@ROWS
@given(SEEDS, SIZES)
def test_permutation_is_one_of_whole_sentences(seed, n):
    at, may, ends = row(seed, n)
    made = bart.permuted(at, generator(seed), may=may, ends=ends)
    assert sorted(made) == at.tolist()
    for before, after in zip(stretches(at, may), stretches(made, may), strict=True):
        assert sorted(before) == sorted(after)
        last = before[-1] if before else None
        for one, other in pairwise(after):
            assert other == one + 1 or ends[one] or one == last


@ROWS
@given(SEEDS, SIZES)
def test_rotation_is_one_of_each_stretch(seed, n):
    at, may, _ = row(seed, n)
    made = bart.rotated(at, generator(seed), may=may)
    for before, after in zip(stretches(at, may), stretches(made, may), strict=True):
        if before:
            cut = before.index(after[0])
            assert after == before[cut:] + before[:cut]


@ROWS
@given(SEEDS, SIZES, st.floats(0, 1))
def test_deletion_keeps_a_subsequence_and_masking_the_rest(seed, n, rate):
    at, may, _ = row(seed, n)
    wanted = round(rate * may.sum())
    kept = bart.deleted(at, generator(seed), may=may, rate=rate)
    assert kept.size == n - wanted and (np.diff(kept) > 0).all()
    assert np.isin(np.flatnonzero(~may), kept).all()
    holed = bart.holed(at, generator(seed), may=may, rate=rate)
    assert (holed == HOLE).sum() == wanted
    assert (holed[holed != HOLE] == at[holed != HOLE]).all() and (holed[~may] == at[~may]).all()


@ROWS
@given(SEEDS, SIZES, st.floats(0, 1))
def test_infilling_hides_its_share_behind_masks_in_place(seed, n, rate):
    """Filled with what is missing between the kept neighbors, the holes give the text again."""
    at, may, _ = row(seed, n)
    made = bart.infilled(at, generator(seed), may=may, rate=rate)
    kept = made[made != HOLE]
    assert (np.diff(kept) > 0).all() and np.isin(np.flatnonzero(~may), kept).all()
    assert n - kept.size == round(rate * may.sum())
    found, missing = [], set(at.tolist()) - set(kept.tolist())
    for place, each in enumerate(made.tolist()):
        if each != HOLE:
            found.append(each)
            continue
        later = [other for other in made[place:].tolist() if other != HOLE]
        until = later[0] if later else n
        found += range(found[-1] + 1 if found else 0, until)
        missing -= set(found)
    assert found == at.tolist() and not missing


def test_spans_are_poisson_of_mean_three_and_hide_three_tenths():
    lengths = np.concatenate([bart._lengths(3000, 3.0, generator(seed))[:-1] for seed in range(30)])
    error = np.sqrt(3 / lengths.size)
    assert lengths.mean() == pytest.approx(3, abs=4 * error)
    assert lengths.var() == pytest.approx(3, rel=0.05)
    assert (lengths == 0).mean() == pytest.approx(np.exp(-3), abs=4 * np.sqrt(0.05 / lengths.size))
    n, masks = 1000, []
    for seed in range(100):
        may = np.ones(n, bool)
        made = bart.infilled(np.arange(n), generator(seed), may=may, rate=0.3)
        assert (made != HOLE).sum() == n - 300
        masks.append((made == HOLE).sum())
    assert np.mean(masks) == pytest.approx(100, abs=2)  # a mask for three tokens


def test_every_token_is_as_likely_to_be_hidden():
    n, rows = 60, 3000
    hidden = np.zeros(n)
    for seed in range(rows):
        made = bart.infilled(np.arange(n), generator(seed), may=np.ones(n, bool), rate=0.3)
        hidden[np.setdiff1d(np.arange(n), made)] += 1 / rows
    # At the edges fewer spans cover a token, so they are left out.
    assert abs(hidden[8:-8] - hidden[8:-8].mean()).max() < 5 * np.sqrt(0.3 * 0.7 / rows)
    assert hidden.mean() == pytest.approx(0.3)


@ROWS
@given(SEEDS, SIZES)
def test_together_they_touch_no_special_token(seed, n):
    noise = bart.Noise(infill=0.2, permute=True, mask=0.1, delete=0.1, rotate=0.5)
    ids, may, made = everything(n, seed, noise)
    special = ids[~may]
    assert made[np.isin(made, special)].tolist() == special.tolist()
    texts = made[made != MASK]
    assert np.isin(texts, ids).all() and np.unique(texts).size == texts.size
    assert made.dtype == ids.dtype


def test_no_noise_is_the_text_and_noise_is_a_function_of_its_key():
    none = bart.Noise(infill=0, permute=False)
    ids, _, made = everything(100, 0, none)
    assert (made == ids).all()
    noise = bart.Noise()
    one, again = (everything(100, 1, noise)[2] for _ in range(2))
    assert one.tolist() == again.tolist()
    may, ends = np.ones(100, bool), np.arange(100) % 10 == 9
    passes = [
        bart.noised(ids, generator(0, seed), may=may, ends=ends, mask=MASK, noise=noise).tolist()
        for seed in range(2)
    ]
    assert passes[0] != passes[1]
