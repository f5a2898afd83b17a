"""Span corruption has T5's numbers, UL2's denoisers theirs, and no text is lost."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config.objectives import Ul2
from jaxlm.core.errors import ConfigError
from jaxlm.data import prefixes, spans, ul2
from jaxlm.data.noise import generator

PREFIX = {"R": 2, "S": 3, "X": 4}
DENOISERS = [ul2.Denoiser(each.mode, each.rate, each.span) for each in Ul2().denoisers]
SENTINELS = tuple(range(999, 799, -1))


def text(n):
    return np.arange(10, 10 + n, dtype=np.int32)


def corrupted(n, seed, rate=0.15, mean=3.0):
    return spans.span_corrupted(
        text(n), generator(seed), rate=rate, mean_span=mean, sentinels=SENTINELS
    )


def denoised(n, seed):
    how = {"sentinels": SENTINELS, "denoisers": DENOISERS, "modes": PREFIX}
    return ul2.denoised(text(n), generator(seed), **how)


def runs(ids):
    """The tokens after each sentinel, in order."""
    found = {}
    for each in ids.tolist():
        if each in SENTINELS:
            found[each] = []
        else:
            found[next(reversed(found))].append(each)
    return found


def restored(source, target):
    """The text again: each sentinel gives way to what the target has after it."""
    filling = runs(target)
    parts = [filling.pop(i) if i in SENTINELS else [i] for i in source.tolist()]
    assert not filling
    return [token for part in parts for token in part]


def reference_mask(length, rate, mean, rng):
    """random_spans_noise_mask of Raffel et al. 2020's code, written out."""
    noise = min(max(int(np.round(length * rate)), 1), length - 1)
    count = max(int(np.round(noise / mean)), 1)

    def segments(items):
        first = np.append(0, rng.permutation(np.arange(items - 1) < count - 1)).astype(int)
        return np.bincount(np.cumsum(first))

    lengths = np.stack([segments(length - noise), segments(noise)], axis=1).ravel()
    return np.repeat(np.arange(lengths.size) % 2 == 1, lengths)


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 200), st.integers(0, 10**6), st.floats(0.01, 0.9), st.floats(1, 20))
def test_source_and_target_together_are_the_text(n, seed, rate, mean):
    source, target = corrupted(n, seed, rate, mean)
    assert restored(source, target) == text(n).tolist()
    noise, count = spans.noise_counts(n, rate, mean)
    assert (source.size, target.size) == (n - noise + count, noise + count)
    assert (source.size, target.size, n + 2 * count) == spans.span_sizes(np.int64(n), rate, mean)
    assert list(runs(target)) == list(SENTINELS[:count])
    assert target[0] == SENTINELS[0] and source[-1] == SENTINELS[count - 1]
    assert source.dtype == target.dtype == np.int32


def test_the_share_is_fifteen_percent_and_spans_are_three_long():
    lengths = []
    for seed in range(300):
        _, target = corrupted(568, seed)
        lengths += map(len, runs(target).values())
        assert (target < 800).sum() == round(0.15 * 568)
    error = np.std(lengths) / np.sqrt(len(lengths))
    assert np.mean(lengths) == pytest.approx(3, abs=max(4 * error, 85 / 28 - 3 + 1e-9))


def test_noise_is_where_the_papers_code_has_it():
    n, rows = 40, 3000
    rng = np.random.default_rng(0)
    theirs = np.mean([reference_mask(n, 0.3, 3, rng) for _ in range(rows)], axis=0)
    ours = np.zeros(n)
    for seed in range(rows):
        _, target = corrupted(n, seed, rate=0.3)
        ours[target[(target >= 10) & (target < 800)] - 10] += 1 / rows
    assert abs(ours - theirs).max() < 5 * np.sqrt(2 * 0.25 / rows)
    assert ours[0] == theirs[0] == 0 and ours[-1] == pytest.approx(1)


def test_too_few_sentinels_are_told():
    with pytest.raises(ConfigError, match="tokenizer: has 3 sentinels .* needs 28; use one with"):
        spans.span_corrupted(text(568), generator(0), rate=0.15, mean_span=3, sentinels=(9, 8, 7))


def test_the_same_key_gives_the_same_pair_and_another_pass_another():
    one, again, other = (corrupted(100, seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert any(a.size != b.size or (a != b).any() for a, b in zip(one, other, strict=True))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.integers(0, 10**6))
def test_every_denoiser_keeps_the_text(n, seed):
    source, target = denoised(n, seed)
    assert source[0] in PREFIX.values()
    most = ul2.denoised_sizes(np.int64(n), DENOISERS, modes=True)
    assert (np.array([source.size, target.size, source.size + target.size]) <= most).all()
    if n > 1:
        assert restored(source[1:], target) == text(n).tolist()


def test_the_seven_denoisers_are_as_likely_and_have_the_papers_shares():
    rows, n = 2100, 512
    modes, shares = Counter(), {mode: [] for mode in PREFIX}
    names = {i: mode for mode, i in PREFIX.items()}
    for seed in range(rows):
        source, target = denoised(n, seed)
        mode = names[int(source[0])]
        modes[mode] += 1
        shares[mode].append(((target >= 10) & (target < 800)).sum() / n)
    for mode, count in {"R": 2, "S": 1, "X": 4}.items():
        share = count / 7
        assert modes[mode] / rows == pytest.approx(
            share, abs=4 * np.sqrt(share * (1 - share) / rows)
        )
    assert np.allclose(shares["R"], round(0.15 * n) / n)
    assert {round(x, 2) for x in shares["X"]} == {0.15, 0.5}
    error = np.std(shares["S"]) / np.sqrt(len(shares["S"]))
    assert np.mean(shares["S"]) == pytest.approx(0.25, abs=4 * error)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75, 0.9])
def test_the_end_is_its_share_in_the_mean(rate):
    ends = [40 - prefixes.sequential_split(40, np.random.default_rng(i), rate) for i in range(2000)]
    assert np.mean(ends) == pytest.approx(40 * rate, abs=4 * np.std(ends) / np.sqrt(2000) + 0.5)
    assert min(ends) >= 1 and max(ends) < 40
    assert (
        max(ends)
        == ul2.denoised_sizes(np.array([40]), [ul2.Denoiser("S", rate, 3.0)], modes=False).target[0]
        - 1
    )


@pytest.mark.parametrize("rate", [0.01, 0.5, 0.75, 0.99])
def test_the_shortest_texts_are_cut_too(rate):
    for n in range(2, 64):
        assert 0 < prefixes.sequential_split(n, np.random.default_rng(n), rate) < n


def test_prefixes_are_uniform():
    n, rows = 9, 4000
    counts = Counter(prefixes.prefixed(text(n), generator(seed))[0].size for seed in range(rows))
    assert sorted(counts) == list(range(1, n))
    assert max(counts.values()) < rows / 8 + 5 * np.sqrt(rows / 8)
    assert min(counts.values()) > rows / 8 - 5 * np.sqrt(rows / 8)


def test_the_noise_stays_what_it_was():
    """A run that resumes under a later version must see the pairs it would have seen."""
    source, target = corrupted(12, 7, rate=0.4, mean=2)
    assert source.tolist() == [10, 11, 12, 13, 999, 16, 17, 18, 998]
    assert target.tolist() == [999, 14, 15, 998, 19, 20, 21]
