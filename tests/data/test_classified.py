"""Rows of labeled texts: what each holds, how texts share them, and what the audit says."""

import json

import numpy as np
import pytest

from jaxlm.config.objectives import Classification, TokenClassification
from jaxlm.config.schema import Examples, Source
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.data.classified import Reads
from jaxlm.data.labeling import opener
from jaxlm.data.pipeline import open_data
from jaxlm.text.train import train

TOKENIZER = train("bpe", 300, ["the quick brown fox jumps over the lazy dog\n" * 9], "encoder")
LABELS = ("no", "yes")
TEXTS = [{"text": "the " * n + "fox", "label": LABELS[n % 2]} for n in (2, 8, 1, 5, 3, 9, 4)]
TOKENS, PAIR = Reads(), Reads(start=7)


@pytest.fixture
def opened(tmp_path):
    """(records, what is wanted) -> Opened."""

    def open_(records, wanted=None, length=24, hold_out=0.0, reads=TOKENS, name="a", **how):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        wanted = wanted or Classification(labels=LABELS)
        read = opener(TOKENIZER, wanted, Examples(**how), reads, length=length)
        return read(Source(path=str(path)), hold_out)

    return open_


def every(rows):
    index = np.arange(rows.count)
    return rows.take(index, index)


def texts_of(batch):
    """(ids, label) of each text of a batch, in order."""
    found = []
    for row, segments in enumerate(batch["segments"]):
        for k in range(segments.max()):
            at = segments == k + 1
            assert batch["positions"][row][at].tolist() == list(range(at.sum()))
            assert batch["weights"][row, k] == 1
            found.append((batch["tokens"][row][at].tolist(), batch["targets"][row, k]))
        assert not batch["weights"][row, segments.max() :].any()
    return sorted(found)


def test_texts_share_rows_and_are_as_they_are_alone(opened):
    packed, alone = opened(TEXTS).train, opened(TEXTS, packing=False).train
    assert packed.count < alone.count == len(TEXTS) and packed.most > alone.most == 1
    right = [(TOKENIZER.encode(each["text"]), LABELS.index(each["label"])) for each in TEXTS]
    assert texts_of(every(packed)) == texts_of(every(alone)) == sorted(right)
    batch = every(packed)
    assert batch["targets"].shape == batch["weights"].shape == (packed.count, packed.most)
    assert {name: array.dtype for name, array in batch.items()} == {
        **dict.fromkeys(("tokens", "segments", "positions", "targets"), np.int32),
        "weights": np.float32,
    }
    assert alone.widths(np.arange(2))["tokens"] == max(len(ids) for ids, _ in right[:2])
    assert "targets" not in alone.widths(np.arange(2))


def test_several_labels_and_numbers_are_floats_beside_each_other(opened):
    names = ("a", "b", "c")
    rows = [{"text": "fox", "label": label} for label in (["a", "c"], [], "b")]
    found = opened(rows, Classification(problem="multi", labels=names)).train
    batch = every(found)
    assert found.count == 1 and batch["targets"].dtype == np.float32
    assert batch["targets"].reshape(3, 3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    rows = [{"text": "fox", "label": label} for label in (2.5, -1)]
    batch = every(opened(rows, Classification(problem="regression", labels=("x",))).train)
    assert batch["targets"].tolist() == [[2.5, -1]] and batch["weights"].tolist() == [[1, 1]]


def test_an_encoder_decoder_reads_the_text_twice(opened):
    batch = every(opened(TEXTS, reads=PAIR).train)
    for row, segments in enumerate(batch["segments"]):
        assert np.array_equal(segments, batch["source_segments"][row])
        assert np.array_equal(batch["positions"][row], batch["source_positions"][row])
        for k in range(1, segments.max() + 1):
            at = segments == k
            source, target = (batch[name][row][at].tolist() for name in ("source", "tokens"))
            assert target == [PAIR.start, *source[:-1]] and source[-1] == TOKENIZER.eos


def test_words_are_labeled_at_their_first_token(opened):
    rows = [{"tokens": ["foxtrot", "the", "dog"], "tags": ["B-X", "O", "B-X"]}]
    found = opened(rows * 2, TokenClassification(labels=("B-X", "O")))
    batch = every(found.train)
    at = batch["weights"][0] > 0
    assert batch["targets"][0][at].tolist() == [0, 1, 0] * 2
    ids = TOKENIZER.encode("foxtrot the dog")
    firsts = [TOKENIZER.encode(word, add_special=False)[0] for word in ("foxtrot", " the", " dog")]
    assert batch["tokens"][0][at].tolist() == firsts * 2
    assert at.sum() == 6 < (batch["segments"] > 0).sum() == 2 * len(ids)
    assert found.audit.labels == {"B-X": 4, "O": 2}


def test_sources_of_one_data_set_may_pack_differently(tmp_path, opened):
    """K is that of the source with the most texts in a row; filler has no weight."""
    short = [{"text": "a", "label": "no"}, {"text": "b", "label": "yes"}] * 6
    long = [{"text": "the " * 20, "label": "no"}] * 3
    for name, rows in (("short", short), ("long", long)):
        opened(rows, name=name)
    paths = tuple(Source(path=str(tmp_path / f"{name}.jsonl")) for name in ("long", "short"))
    read = opener(TOKENIZER, Classification(labels=LABELS), Examples(), Reads(), length=24)
    data, _ = open_data(paths, None, read, length=24, pad=TOKENIZER.pad, seed=0)
    batch = data.batch(0, 8, limit=data.rows)
    most = [every(source)["weights"].shape[1] for source in data.sources]
    assert most == [1, batch["weights"].shape[1]] and most[1] > 1
    assert batch["weights"].sum() == len(short) + len(long)


def test_a_text_that_is_too_long_is_refused_or_cut_or_dropped_and_told(opened):
    rows = [{"text": "the " * 40, "label": "no"}, {"text": "dog", "label": "yes"}]
    with pytest.raises(DataError, match=r"a\.jsonl:1: 4\d tokens are more than length=24; use len"):
        opened(rows)
    cut = opened(rows, overlong="truncate-left", packing=False)
    batch = every(cut.train)
    assert (batch["segments"][0] > 0).all() and cut.audit.truncated == 1
    first, last = TOKENIZER.frame.before[0], TOKENIZER.frame.after[0]
    assert batch["tokens"][0, [0, -1]].tolist() == [first, last]
    left = opened(rows, overlong="drop").audit
    assert left.kept == 1 and dict(left.dropped) == {"too long": 1}
    assert left.lost[0]["where"].endswith("a.jsonl:1")
    assert any("too long: 1" in line for line in left.lines(False))
    with pytest.raises(DataError, match="nothing is left to learn from: 1 too long"):
        opened(rows[:1], overlong="drop")


@pytest.mark.parametrize(("length", "pair"), [(2, None), (5, "dog")])
def test_a_length_without_room_for_a_text_is_refused(opened, length, pair):
    row = {"text": "dog", "label": "no"} | ({"pair": pair} if pair else {})
    with pytest.raises(ConfigError, match=f"^length: {length} tokens have no room for .* use more"):
        opened([row], length=length, overlong="truncate-right")


def test_a_text_is_held_out_with_every_label_that_it_has(opened):
    rows = [{"text": f"fox {n // 2}", "label": LABELS[n % 2]} for n in range(100)]
    found = opened(rows, hold_out=0.5)
    sides = [{tuple(ids) for ids, _ in texts_of(every(side))} for side in (found.train, found.held)]
    assert all(sides) and not sides[0] & sides[1]


def test_what_is_held_out_is_so_by_what_it_says(opened):
    rows = [{"text": f"fox {n}", "label": LABELS[n % 2]} for n in range(100)]
    found = opened(rows, hold_out=0.2)
    assert 5 < found.audit.held == len(found.held.texts) < 40
    assert found.audit.kept + found.audit.held == 100 == found.counts["documents"]
    assert found.train.digest != found.held.digest != opened(rows[::-1], hold_out=0.3).held.digest
