"""Rows of a masked language model: framed, packed, masked anew in each pass, all of the text."""

from collections import Counter

import numpy as np
import pytest

from jaxlm.config.objectives import Mlm
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.data import pipeline
from jaxlm.data.cache import Tokens, tokenized
from jaxlm.data.masked import check_mask, masked
from jaxlm.text import train

TEXTS = [f"{i} the quick brown fox jumps over {'the lazy dog ' * (i % 4)}" for i in range(60)]
LENGTH = 48


@pytest.fixture(scope="module", params=["bpe", "sentencepiece"])
def own(request):
    return train.train(request.param, 330, TEXTS * 9, "encoder")


@pytest.fixture
def stream(own, jsonl, tmp_path):
    return tokenized(jsonl("a", TEXTS), own, folder=tmp_path / "cache").train


def rows_of(stream, own, length=LENGTH, types=False, **how):
    return masked(stream, own, Mlm(**how), length=length, types=types, seed=3)


def whole(rows, drawn=0):
    """Every row as a batch, and what its tokens were before they were masked."""
    every = np.arange(rows.count)
    batch = rows.take(every, every + drawn)
    ids = batch["tokens"].copy()
    real = np.nonzero(batch["weights"])
    ids[real[0], batch["at"][real]] = batch["targets"][real]
    return batch, ids


@pytest.mark.parametrize("shape", ["full", "packed", "padded", "pairs"])
def test_a_pass_is_all_of_the_text_in_frames(own, stream, shape):
    rows = rows_of(stream, own, rows=shape, rate=0.3)
    batch, ids = whole(rows)
    special = [*own.names.values()]
    seen = Counter(ids[batch["segments"] > 0].tolist())
    expected = Counter(stream.ids.tolist())
    assert {i: n for i, n in seen.items() if i not in special} == {
        i: n for i, n in expected.items() if i not in special
    }
    for number, segments in enumerate(batch["segments"]):
        for segment in range(1, segments.max() + 1):
            here = np.flatnonzero(segments == segment)
            assert (np.diff(here) == 1).all()
            assert ids[number, here[0]] == own.frame.before[0]
            assert ids[number, here[-1]] == own.frame.after[-1]
            assert (batch["positions"][number, here] == np.arange(here.size)).all()
    most = batch["segments"].max()
    assert (most > 1) == (shape == "packed")
    if shape == "full":  # as long as fits, but for the last
        assert ((batch["segments"] > 0).sum(1)[:-1] >= LENGTH - 1).all()


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_only_masked_positions_are_learned_and_each_pass_has_others(own, stream, unit):
    rows = rows_of(stream, own, unit=unit, random=0.0, hidden=1.0, rows="packed")
    batch, ids = whole(rows)
    again, _ = whole(rows)
    later, same = whole(rows, drawn=rows.count)
    assert all((batch[name] == again[name]).all() for name in batch)
    assert (same == ids).all() and (later["at"] != batch["at"]).any()
    hidden = batch["tokens"] == own.mask
    assert hidden.sum() == batch["weights"].sum()
    assert not np.isin(batch["targets"][batch["weights"] > 0], [*own.names.values()]).any()
    share = batch["weights"].sum() / (~np.isin(ids, [*own.names.values()])).sum()
    assert share == pytest.approx(0.15, abs=0.02)


def test_a_pair_has_two_parts_with_their_types(own, stream):
    batch, _ = whole(rows_of(stream, own, rows="pairs", types=True))
    _, kinds = own.joined([9, 9], [9])
    assert batch["types"].max() == max(kinds)
    assert "types" not in whole(rows_of(stream, own))[0]


def test_padded_rows_are_as_wide_as_the_longest_of_the_batch(own, stream):
    rows = rows_of(stream, own, rows="padded", length=160)
    data = pipeline.Dataset((rows,), None, 160, own.pad, 0)
    batch = data.batch(0, 8)
    most = (batch["segments"] > 0).sum(1).max()
    assert most <= batch["tokens"].shape[1] <= most + 20
    assert batch["at"].shape[1] < round(0.15 * 160)
    full = rows.take(*(data._locate(np.arange(8))[1], np.arange(8)))
    assert (full["tokens"][:, : batch["tokens"].shape[1]] == batch["tokens"]).all()
    assert full["weights"].sum() == batch["weights"].sum()


def test_a_batch_is_the_same_on_any_number_of_processes(own, stream):
    data = pipeline.Dataset((rows_of(stream, own),), None, LENGTH, own.pad, 5)
    one = data.batch(3, 8)
    two = [data.batch(3, 8, slice(i, i + 4)) for i in (0, 4)]
    for name, array in one.items():
        assert (array == np.concatenate([part[name] for part in two])).all()
    held = pipeline.Dataset((rows_of(stream, own),), None, LENGTH, own.pad, None)
    assert all((held.batch(0, 4)[n] == held.batch(0, 4)[n]).all() for n in one)
    assert data.digest != pipeline.Dataset((rows_of(stream, own, rate=0.2),), None, 48, 1, 5).digest


def test_what_cannot_be_masked_is_said(own, stream, tokenizer):
    with pytest.raises(ConfigError, match="no mask token, which objective.type=mlm needs"):
        check_mask(tokenizer)
    check_mask(own)
    with pytest.raises(ConfigError, match="length: 3 leaves no room for text beside 2 special"):
        rows_of(stream, own, length=3)
    broken = Tokens(stream.ids + own.vocab, stream.offsets, "here", "0")
    with pytest.raises(DataError, match="here: id .* outside the vocabulary"):
        whole(rows_of(broken, own))
