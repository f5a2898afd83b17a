import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config.schema import Source
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.data import pipeline
from jaxlm.data.cache import Tokens
from jaxlm.data.packing import Windows
from jaxlm.data.pipeline import Dataset, open_data, prefetch

LENGTH = 8


def stream(tokens, first):
    ids = np.arange(first, first + tokens, dtype=np.uint32)
    return Tokens(ids, np.array([0, tokens]), "stream", f"{first}")


def dataset(seed: int | None = 0, weights=None, length=LENGTH):
    streams = (stream(801, 0), stream(41, 10_000), stream(250, 20_000))
    rows = tuple(Windows(each, length, 30_000, 7) for each in streams)
    return Dataset(rows, weights, length, pad=7, seed=seed)


def windows_of(tokenizer):
    return lambda stream: Windows(stream, 16, tokenizer.vocab, tokenizer.pad)


def rows(batch):
    return [row[0] for row in batch["tokens"].tolist()]


def sequence(data, count):
    return rows(data.batch(0, count))


def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@settings(deadline=None)
@given(
    st.integers(0, 10**7),
    st.integers(1, 12),
    st.integers(0, 3),
    st.sampled_from([None, (0.5, 0.2, 0.3)]),
)
def test_a_batch_does_not_depend_on_the_number_of_processes(step, size, parts, weights):
    data = dataset(weights=weights)
    whole = data.batch(step, size * 2**parts)
    own = [
        data.batch(step, size * 2**parts, slice(i * size, (i + 1) * size)) for i in range(2**parts)
    ]
    assert equal(whole, {name: np.concatenate([part[name] for part in own]) for name in whole})


def test_a_batch_does_not_depend_on_the_ones_before():
    again = dataset()
    for step in (900, 3):
        data = dataset()
        for before in range(5):
            data.batch(before, 16)
        assert equal(data.batch(step, 16), again.batch(step, 16))


def test_the_batch_size_does_not_change_the_sequence():
    data = dataset()
    in_fours = [row for step in range(40) for row in rows(data.batch(step, 4))]
    assert in_fours == sequence(data, 160)


def test_each_pass_has_each_row_once_in_a_new_order():
    data = dataset()
    assert data.rows == 100 + 5 + 32
    seen = sequence(data, 3 * data.rows)
    passes = [seen[i * data.rows : (i + 1) * data.rows] for i in range(3)]
    assert len(set(passes[0])) == data.rows
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    assert passes[0] != passes[1] != passes[2] != sorted(passes[2])


def test_seeds_give_other_orders():
    assert sequence(dataset(0), 50) != sequence(dataset(1), 50)
    assert dataset(0).digest != dataset(1).digest


def test_a_mixture_has_its_shares_and_reads_each_source_through():
    data = dataset(weights=(0.5, 0.2, 0.3))
    assert data.weighted
    seen = sequence(data, 1000)
    by_source = Counter(first // 10_000 for first in seen)
    assert [by_source[i] for i in range(3)] == pytest.approx([500, 200, 300], abs=2)
    small = [first for first in seen if first // 10_000 == 1]
    for start in range(0, 195, 5):
        assert len(set(small[start : start + 5])) == 5


@pytest.mark.parametrize("weights", [None, (0.4, 0.3, 0.3)])
def test_rows_at_the_limit_and_beyond_are_filler(weights):
    data = dataset(weights=weights)
    cut, whole = data.batch(4, 10, limit=46), data.batch(4, 10)
    for name in whole:
        assert np.array_equal(cut[name][:6], whole[name][:6])
    assert not cut["weights"][6:].any()
    assert not cut["segments"][6:].any()
    assert (cut["tokens"][6:] == 7).all()
    assert not data.batch(5, 10, limit=46)["weights"].any()


@pytest.mark.parametrize(("epochs", "expected"), [(1, 137), (2, 274), (0.5, 68), (1e-9, 1)])
def test_epochs_are_rows(epochs, expected):
    assert dataset().rows_for(epochs) == expected


def test_two_epochs_see_each_row_twice():
    data = dataset()
    limit = data.rows_for(2)
    seen = Counter()
    for step in range(-(-limit // 10)):
        batch = data.batch(step, 10, limit=limit)
        seen.update(batch["targets"][batch["weights"] > 0].tolist())
    assert set(seen.values()) == {2}
    assert len(seen) == 801 + 41 + 250 - 3


def test_a_weighted_mixture_has_no_epochs():
    with pytest.raises(ConfigError, match="epochs: a mixture with weights has no end of a pass"):
        dataset(weights=(0.4, 0.3, 0.3)).rows_for(1)


def test_without_a_seed_every_row_comes_once_and_a_part_is_a_sample():
    data = dataset(seed=None)
    assert data.batches(10) == 14
    seen = []
    for step in range(data.batches(10)):
        batch = data.batch(step, 10)
        real = batch["segments"][:, 0] > 0
        seen += batch["tokens"][real, 0].tolist()
    assert len(set(seen)) == len(seen) == data.rows
    assert {row // 10_000 for row in seen[:40]} == {0, 1, 2}  # of all three streams
    assert sequence(dataset(seed=None), 10) == seen[:10]
    assert not data.batch(14, 10)["weights"].any()


TEXTS = {
    "one": [f"the first text, number {i}" for i in range(200)],
    "two": [f"a second {i}" for i in range(100)],
}


@pytest.fixture
def opened(jsonl, tokenizer, tmp_path):
    def open_(names, validation=None, **weights):
        train = tuple(jsonl(name, TEXTS[name], weight=weights.get(name)) for name in names)
        opener = pipeline.documents(tokenizer, windows_of(tokenizer), cache=tmp_path / "cache")
        return open_data(train, validation, opener, length=16, pad=tokenizer.pad, seed=1)

    return open_


def texts(data, tokenizer):
    ids = np.concatenate([each.stream.ids for each in data.sources])
    return [
        text for text in tokenizer.decode(ids, skip_special=False).split("<|endoftext|>") if text
    ]


def test_training_and_held_out_documents(opened, jsonl, tokenizer):
    train, held = opened(["one", "two"], 0.2)
    everything = TEXTS["one"] + TEXTS["two"]
    assert sorted(texts(train, tokenizer) + texts(held, tokenizer)) == sorted(everything)
    assert held.seed is None
    sources = tuple(jsonl(name, TEXTS[name]) for name in TEXTS)
    assert list(pipeline.training_texts(sources, 0.2)) == texts(train, tokenizer)
    assert train.counts == {"documents": 300}


def test_validation_of_its_own(opened, jsonl, tokenizer):
    train, validation = opened(["one"], (jsonl("two", TEXTS["two"]),))
    assert texts(train, tokenizer) == TEXTS["one"]
    assert texts(validation, tokenizer) == TEXTS["two"]
    assert opened(["one"])[1] is None


def test_validation_of_its_own_is_opened_without_the_training_data(
    opened, jsonl, tokenizer, tmp_path
):
    own = (jsonl("two", TEXTS["two"]),)
    _, held = opened(["one"], own)
    gone = (Source(path=str(tmp_path / "gone.jsonl")),)
    opener = pipeline.documents(tokenizer, windows_of(tokenizer), cache=tmp_path / "cache")
    how = {"opener": opener, "length": 16, "pad": tokenizer.pad}
    alone = pipeline.open_validation(gone, own, **how)
    assert equal(alone.batch(0, 7), held.batch(0, 7)) and alone.digest == held.digest
    share = pipeline.open_validation((jsonl("one", TEXTS["one"]),), 0.2, **how)
    assert equal(share.batch(0, 7), opened(["one"], 0.2)[1].batch(0, 7))


def test_weights_come_from_the_sources(opened):
    assert opened(["one", "two"], one=3.0, two=1.0)[0].weights == (3.0, 1.0)
    assert not opened(["one"], one=3.0)[0].weighted
    with pytest.raises(
        ConfigError, match=r"data\.train: .*two\.jsonl has no weight and others have"
    ):
        opened(["one", "two"], one=3.0)


def test_the_digest_says_whether_the_batches_are_the_same(opened):
    digests = {
        opened(["one", "two"])[0].digest,
        opened(["two", "one"])[0].digest,
        opened(["one"])[0].digest,
        opened(["one"], 0.2)[0].digest,
        opened(["one", "two"], one=1.0, two=1.0)[0].digest,
    }
    assert len(digests) == 5
    assert opened(["one"])[0].digest in digests


def test_data_that_is_empty_is_refused(opened, jsonl, monkeypatch):
    monkeypatch.setitem(TEXTS, "none", ["", ""])
    with pytest.raises(DataError, match=r"none\.jsonl: 0 documents with text, 2 empty"):
        opened(["one", "none"])
    with pytest.raises(DataError, match=r"none\.jsonl: 0 documents"):
        opened(["one"], (jsonl("none", []),))
    monkeypatch.setitem(TEXTS, "single", ["only one"])
    with pytest.raises(DataError, match=r"data\.validation: 1e-06 of 1 documents holds out none"):
        opened(["single"], 1e-6)
    with pytest.raises(
        DataError, match=r"single\.jsonl: 0\.999999 of its 1 documents holds out every"
    ):
        opened(["single"], 0.999999)


def test_prefetch_gives_all_in_order_from_one_thread():
    threads = set()

    def fn(step):
        threads.add(threading.current_thread())
        return step

    assert list(prefetch(fn, 3, 20)) == list(range(3, 20))
    assert list(prefetch(fn, 5, 5)) == []
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_prefetch_raises_at_its_place():
    def fn(step):
        if step == 3:
            raise DataError("file", "wrong")
        return step

    seen = []
    with pytest.raises(DataError, match="file: wrong"):
        for step in prefetch(fn, 0, 10):
            seen.append(step)
    assert seen == [0, 1, 2]


def test_a_closed_prefetch_leaves_no_thread_and_runs_little_ahead():
    done = []
    iterator = prefetch(lambda step: done.append(step) or step, 0, 10**9)
    assert [next(iterator) for _ in range(3)] == [0, 1, 2]
    iterator.close()
    assert len(done) <= 5
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_a_replay_stands_evenly_among_rows_that_are_each_seen_once(share):
    own = dataset(weights=None)
    data = own.replaying(Windows(stream(90, 25_000), LENGTH, 30_000, 7), share)
    count = data.rows_for(1)
    found = sequence(data, count)
    again = [first >= 25_000 for first in found]
    assert sorted(first for first in found if first < 25_000) == sorted(sequence(own, own.rows))
    assert abs(np.mean(again) - share) < 1 / own.rows
    pieces = [np.sum(part) for part in np.array_split(again, count // 20)]
    assert max(pieces) - min(pieces) <= 2
    assert len({first for first in found if first >= 25_000}) > 5
    assert equal(data.batch(3, 8), {k: v[24:32] for k, v in data.batch(0, 32).items()})
    assert len({data.digest, own.digest, own.replaying(data.sources[-1], 0.125).digest}) == 3
