"""Texts that belong together, as rows of segments: found, framed, cut, held out."""

import csv
import json

import numpy as np
import pytest

from jaxlm.config.objectives import Contrastive
from jaxlm.config.schema import Source
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.data import contrastive
from jaxlm.data.pipeline import open_data
from jaxlm.text.train import train

BASIC = {"query": "the fox", "document": "jumps over"}


def how(columns=()):
    return Contrastive(columns=columns, negatives=2)


@pytest.fixture
def opened(tmp_path, tokenizer):
    """(records, options) -> rows, rows held out, the audit."""

    def open_(records, length=16, hold_out=0.0, overlong="error", **more):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        opener = contrastive.opener(tokenizer, how(**more), overlong, length=length)
        found = opener(Source(path=str(path)), hold_out)
        return found.train, found.held, found.audit

    return open_


def said(rows, tokenizer, row=0):
    """The texts of a row, by segment; its positions begin anew in each."""
    batch = {name: array[0] for name, array in rows.take(np.array([row]), np.zeros(1)).items()}
    found = []
    for segment in range(1, batch["segments"].max() + 1):
        at = batch["segments"] == segment
        assert batch["positions"][at].tolist() == list(range(at.sum()))
        found.append(tokenizer.decode(batch["tokens"][at]))
    assert not batch["positions"][batch["segments"] == 0].any()
    return found


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        (BASIC, ["the fox", "jumps over"]),
        ({"anchor": "fox", "positive": "dog", "negative": "lazy"}, ["fox", "dog", "lazy"]),
        ({"question": "q", "answer": "d", "negatives": ["a", "b", "c"]}, [*"qdab"]),
        ({"negative_2": "b", "query": "q", "positive": "p", "negative_1": "a"}, [*"qpab"]),
        ({"query": "q", "positive": "p", "negative": None}, ["q", "p"]),
        ({"sentence1": "fox", "sentence2": "dog"}, ["fox", "dog"]),
        ({"text": "fox"}, ["fox", "fox"]),
    ],
)
def test_columns_are_found_by_name(opened, tokenizer, record, texts):
    rows, _, audit = opened([record])
    assert said(rows, tokenizer) == texts
    assert audit.columns.split(", ")[0] in record and audit.negatives == len(texts) - 2


def test_columns_are_those_that_are_named(opened, tokenizer):
    record = {"a": "fox", "b": "dog", "c": ["lazy"], "query": "no", "negative": "no"}
    rows, _, _ = opened([record], columns=("a", "b", "c"))
    assert said(rows, tokenizer) == ["fox", "dog", "lazy"]


def test_tables_are_read_too(tmp_path, tokenizer):
    with open(tmp_path / "p.tsv", "w", newline="") as file:
        table = csv.DictWriter(file, BASIC, delimiter="\t")
        table.writeheader()
        table.writerow(BASIC)
    opener = contrastive.opener(tokenizer, how(), "error", length=16)
    rows = opener(Source(path=str(tmp_path / "p.tsv")), 0.0).train
    assert said(rows, tokenizer) == ["the fox", "jumps over"]


def test_equal_texts_are_known_and_those_that_lack_are_none(opened):
    records = [BASIC, {"query": "jumps over", "document": "the fox"}]
    rows, _, _ = opened(records)
    batch = rows.take(np.arange(2), np.zeros(2))
    texts = batch["texts"].reshape(2, 4, 2)
    assert np.array_equal(texts[0, :2], texts[1, 1::-1]) and not texts[:, 2:].any()
    assert np.any(texts[0, 0] != texts[0, 1])
    assert rows.widths(np.arange(2))["tokens"] == (batch["segments"] > 0).sum(1).max()


def test_what_is_held_out_is_so_by_its_anchor(opened):
    records = [{"query": f"fox {n % 50}", "document": f"dog {n}"} for n in range(200)]
    train, held, audit = opened(records, hold_out=0.3)
    anchors = [{tuple(each[:2]) for each in rows.texts.tolist()} for rows in (train, held)]
    assert audit.held == held.count and train.count + held.count == 200
    assert len(anchors[1]) > 5 and not anchors[0] & anchors[1]
    again, _, _ = opened(records[::-1], hold_out=0.3)
    assert again.digest != train.digest and again.count == train.count


def test_texts_that_are_too_long_are_refused_or_cut_or_dropped_and_told(opened, tokenizer):
    records = [BASIC, {"query": "fox", "document": "dog " * 40}]
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: \d+ tokens are more than len"):
        opened(records)
    rows, _, audit = opened(records, overlong="truncate-right")
    assert audit.truncated == 1 and audit.lost[0]["where"].endswith("pairs.jsonl:2")
    assert (rows.take(np.array([1]), np.zeros(1))["segments"] == 2).sum() == 16
    rows, _, audit = opened(records, overlong="drop")
    assert rows.count == audit.kept == audit.dropped.total() == 1


@pytest.mark.parametrize(
    ("records", "more", "line"),
    [
        ([{"q": "a"}], {}, "the columns are q; name two: objective.columns="),
        (
            [BASIC],
            {"columns": ("q", "document")},
            "no column 'q'; the columns are query, document: name oth",
        ),
        ([{"query": "", "document": "a"}], {}, "jsonl:1: query is empty"),
        ([{"query": "a", "document": 3}], {}, "document is int, not a string"),
        ([BASIC | {"negative": ["a", ""]}], {}, "negative is empty"),
        ([{"sentence1": "a", "sentence2": "b", "label": 0}], {}, "has label beside sentence1 and"),
        (
            [{"question": "a", "answer": "b", "score": 0}],
            {},
            "has score beside question and answer",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(opened, records, more, line):
    with pytest.raises(DataError, match=line):
        opened(records, **more)


def test_a_frame_is_around_each_text_also_when_it_is_cut(tmp_path):
    framing = train("bpe", 300, ["the quick brown fox\n" * 9], "encoder")
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(BASIC | {"document": "fox " * 40}))
    opener = contrastive.opener(framing, how(), "truncate-left", length=8)
    batch = opener(Source(path=str(path)), 0.0).train.take(np.array([0]), np.zeros(1))
    (first,), (last,) = framing.frame
    for segment in (1, 2):
        ids = batch["tokens"][batch["segments"] == segment].tolist()
        assert ids[0] == first and ids[-1] == last and len(ids) <= 8
    assert ids[1:-1] == framing.encode("fox " * 40, add_special=False)[-6:]
    with pytest.raises(ConfigError, match="length: 2 tokens have no room"):
        contrastive.opener(framing, how(), "error", length=2)


def test_batches_are_as_wide_as_their_longest_example(tmp_path, tokenizer):
    path = tmp_path / "p.jsonl"
    records = [{"query": "fox " * n, "document": "dog"} for n in (1, 1, 24, 1)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    opener = contrastive.opener(tokenizer, how(), "error", length=32)
    data, _ = open_data((Source(path=str(path)),), None, opener, length=32, pad=7, seed=0)
    found = [data.batch(step, 1) for step in range(4)]
    widths = {batch["tokens"].shape[1] for batch in found}
    assert len(widths) == 2 and max(widths) < 4 * 32
    assert {batch["texts"].shape[1] for batch in found} == {8}
    filler = data.batch(0, 2, limit=0)
    assert (filler["tokens"] == 7).all() and not filler["segments"].any()


def test_a_tokenizer_is_trained_on_all_texts_but_those_held_out(tmp_path):
    path = tmp_path / "p.jsonl"
    records = [{"query": f"fox {n}", "document": "dog", "negative": "cat"} for n in range(40)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = Source(path=str(path))
    every = [*contrastive.texts([source], how())]
    some = [*contrastive.texts([source], how(), 0.3)]
    assert every[:3] == ["fox 0", "dog", "cat"] and len(every) == 120
    assert 0 < len(some) < 120 and set(some) < set(every)


def test_the_standard_library_has_pairs(tokenizer):
    found = contrastive.read_examples(Source(path="stdlib"), how())
    assert all(text.startswith("def ") for _, (_, text) in [next(found) for _ in range(9)])
