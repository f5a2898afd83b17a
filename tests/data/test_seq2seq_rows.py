"""Sources with their targets, as rows: found, framed, cut, packed, held out."""

import csv
import json

import numpy as np
import pytest

from jaxlm.config.objectives import Seq2seq
from jaxlm.config.schema import Examples, Source
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.data import asked, paired, seq2seq
from jaxlm.data.pipeline import open_data
from jaxlm.text.train import train

BASIC = {"source": "the fox", "target": "jumps over"}
T5 = train("bpe", 380, ["the quick brown fox jumps over the lazy dog\n" * 9], "encoder-decoder")
BART = train("bpe", 300, ["the quick brown fox jumps over the lazy dog\n" * 9], "encoder")
START = 7


def written(tmp_path, records, name="pairs.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Source(path=str(path))


@pytest.fixture
def opened(tmp_path):
    """(records, options) -> rows, rows held out, the audit."""

    def open_(records, length=16, hold_out=0.0, tokenizer=T5, rules=None, **how):
        given = tokenizer, Seq2seq(**how), rules or Examples()
        opener = paired.opener(*given, length=length, start=START)
        found = opener(written(tmp_path, records), hold_out)
        return found.train, found.held, found.audit

    return open_


def taken(rows, *index):
    index = np.array(index or range(rows.count))
    return rows.take(index, np.zeros(index.size))


def said(batch, tokenizer, names=("source", "source_segments")):
    """The texts of the first row, by segment."""
    ids, segments = (batch[name][0] for name in names)
    return [tokenizer.decode(ids[segments == each]) for each in range(1, segments.max() + 1)]


@pytest.mark.parametrize(
    ("record", "source", "target"),
    [
        (BASIC, "the fox", "jumps over"),
        ({"inputs": "a", "targets": "b"}, "a", "b"),
        ({"instruction": "a", "input": "b", "output": "c"}, "a\nb", "c"),
        ({"instruction": "a", "input": "", "output": "c"}, "a", "c"),
        ({"instruction": "a", "output": "c"}, "a", "c"),
        ({"instruction": "a", "context": "b", "response": "c"}, "a\nb", "c"),
        ({"input": "a", "output": "c"}, "a", "c"),
        ({"document": "a", "summary": "c"}, "a", "c"),
        ({"text": "a", "summary": "c"}, "a", "c"),
        ({"article": "a", "highlights": "c", "id": 3}, "a", "c"),
        ({"prompt": "a", "completion": "c"}, "a", "c"),
        ({"question": "a", "context": None, "answer": "c"}, "a", "c"),
    ],
)
def test_columns_are_found_by_name(opened, record, source, target):
    rows, _, audit = opened([record])
    batch = taken(rows)
    assert said(batch, T5) == [source]
    assert said(batch, T5, ("targets", "segments")) == [target]
    assert audit.columns.split(", ")[-1] in record


def test_columns_are_those_that_are_named(opened):
    record = {"a": "fox", "b": "dog", "c": "lazy", "source": "no", "target": "no"}
    rows, _, audit = opened([record], source=("b", "a"), target="c")
    assert said(taken(rows), T5) == ["dog\nfox"] and audit.columns == "b, a, c"


def test_tables_are_read_too(tmp_path):
    with open(tmp_path / "p.csv", "w", newline="") as file:
        table = csv.DictWriter(file, BASIC)
        table.writeheader()
        table.writerow(BASIC)
    opener = paired.opener(T5, Seq2seq(), Examples(), length=16, start=START)
    assert said(taken(opener(Source(path=str(tmp_path / "p.csv")), 0.0).train), T5) == ["the fox"]


@pytest.mark.parametrize("tokenizer", [T5, BART], ids=["T5", "BART"])
def test_both_sides_are_framed_as_the_model_has_it(opened, tokenizer):
    """And the decoder reads the target behind the start (Raffel 2020; Lewis 2019)."""
    batch = taken(opened([BASIC], tokenizer=tokenizer)[0])
    source, target = (tokenizer.encode(BASIC[name]) for name in ("source", "target"))
    assert source[-1] == target[-1] == tokenizer.eos
    assert batch["source"][0, : len(source)].tolist() == source
    assert batch["targets"][0, : len(target)].tolist() == target
    assert batch["tokens"][0, : len(target)].tolist() == [START, *target[:-1]]
    assert batch["weights"][0].tolist() == [1] * len(target) + [0] * (16 - len(target))
    assert (batch["source"][0, len(source) :] == tokenizer.pad).all()


def test_an_end_is_learned_though_a_tokenizer_has_none_around_a_text(opened, tokenizer):
    batch = taken(opened([BASIC], tokenizer=tokenizer)[0])
    target = batch["targets"][0][batch["segments"][0] > 0].tolist()
    assert target == [*tokenizer.encode(BASIC["target"]), tokenizer.eos]


RECORDS = [
    {"source": "fox " * (1 + n % 5), "target": "dog " * (1 + (7 * n) % 4)} for n in range(40)
]


def test_packed_rows_hold_every_pair_once_side_by_side(opened):
    rows, _, audit = opened(RECORDS, length=24, target_length=12)
    batch = taken(rows)
    assert batch["source"].shape[1] == 24 and batch["tokens"].shape[1] == 12
    assert audit.rows == rows.count < audit.kept == 40
    found = []
    for row in range(rows.count):
        each = {name: array[row : row + 1] for name, array in batch.items()}
        sides = said(each, T5), said(each, T5, ("targets", "segments"))
        found += zip(*sides, strict=True)
        for at in ("", "source_"):
            segments, places = each[f"{at}segments"][0], each[f"{at}positions"][0]
            for segment in range(1, segments.max() + 1):
                size = (segments == segment).sum()
                assert places[segments == segment].tolist() == list(range(size))
        firsts = np.flatnonzero((each["positions"][0] == 0) & (each["segments"][0] > 0))
        assert (each["tokens"][0, firsts] == START).all()
    assert sorted(found) == sorted((each["source"], each["target"]) for each in RECORDS)


@pytest.mark.parametrize("packing", [True, False])
def test_batches_are_as_wide_as_their_fullest_row(tmp_path, packing):
    records = [{"source": "fox " * n, "target": "dog " * m} for n, m in ((1, 9), (1, 1), (20, 1))]
    how = Seq2seq(), Examples(packing=packing)
    opener = paired.opener(T5, *how, length=64, start=START)
    data, _ = open_data((written(tmp_path, records),), None, opener, length=64, pad=3, seed=0)
    for step in range(data.rows):
        batch = data.batch(step, 1)
        for wide, segments in (("source", "source_segments"), ("tokens", "segments")):
            used = int((batch[segments] > 0).sum())
            assert batch[wide].shape[1] == -(-used // 8) * 8
    assert data.rows == (2 if packing else 3)


def test_what_is_held_out_is_so_by_its_source(opened):
    records = [{"source": f"fox {n % 50}", "target": f"dog {n}"} for n in range(200)]
    rules = Examples(packing=False)
    train, held, audit = opened(records, hold_out=0.3, rules=rules)
    sources = [{tuple(source) for source, _ in rows.pairs} for rows in (train, held)]
    assert audit.held == held.count and train.count + held.count == 200
    assert len(sources[1]) > 5 and not sources[0] & sources[1]


@pytest.mark.parametrize(
    ("records", "how", "line"),
    [
        ([BASIC, {"source": "fox " * 40, "target": "a"}], {}, r"source: \d+ tokens are more than"),
        ([BASIC, {"source": "a", "target": "dog " * 40}], {}, r"target: \d+ tokens are more than"),
        (
            [BASIC, {"source": "a", "target": "dog " * 9}],
            {"target_length": 8},
            r"target: (\d+) .* objective.target_length=8; use objective.target_length=\1, or",
        ),
    ],
)
def test_texts_that_are_too_long_are_refused_or_cut_or_dropped_and_told(opened, records, how, line):
    with pytest.raises(DataError, match=rf"pairs\.jsonl:2: {line}"):
        opened(records, **how)
    for policy in ("truncate-right", "truncate-left"):
        rules = Examples(overlong=policy, packing=False)
        rows, _, audit = opened(records, rules=rules, **how)
        assert audit.truncated == 1 and audit.lost[0]["where"].endswith("pairs.jsonl:2")
        sides = rows.pairs[1]
        assert all(ids[-1] == T5.eos and ids.size <= 16 for ids in sides)
        assert max(ids.size for ids in sides) == (how.get("target_length") or 16)
    rows, _, audit = opened(records, rules=Examples(overlong="drop"), **how)
    assert rows.count == audit.kept == audit.dropped.total() == 1


@pytest.mark.parametrize(
    ("records", "how", "line"),
    [
        ([{"q": "a"}], {}, "jsonl:1: the columns are q; name them: objective.source=COLUMN"),
        ([{"source": "a"}], {}, "no column 'target' with a target; write one"),
        ([BASIC], {"source": ("q",), "target": "target"}, "no column 'q'; the columns are source"),
        ([BASIC], {"source": ("source",), "target": "t"}, "no column 't' with a target"),
        ([{"source": "", "target": "a"}], {}, "source is empty beside target; write a text"),
        (
            [{"instruction": None, "input": "x", "output": "y"}],
            {},
            "instruction is empty beside input; write a text",
        ),
        ([{"source": "a", "target": ""}], {}, "target: the target is empty"),
        ([{"source": "a", "target": 3}], {}, "target is int, not a string"),
        ([{"source": ["a"], "target": "b"}], {}, "source is list, not a string"),
    ],
)
def test_what_cannot_be_learned_from_is_one_line(opened, records, how, line):
    with pytest.raises(DataError, match=line):
        opened(records, **how)


@pytest.mark.parametrize(
    ("length", "target", "line"),
    [
        (2, None, "length: 2 tokens have no room for a text in the tokenizer's 2 around it"),
        (9, 2, "objective.target_length: 2 tokens have no room for a text"),
        (9, 10, "objective.target_length: 10 is more than length=9"),
    ],
)
def test_lengths_that_cannot_be_are_one_line(opened, length, target, line):
    with pytest.raises(ConfigError, match=line):
        opened([BASIC], length=length, target_length=target, tokenizer=BART)


def test_a_question_is_the_source_as_it_was_trained(tmp_path):
    long = {"source": "fox " * 40, "target": "dog"}
    source, how = written(tmp_path, [BASIC, long, BASIC]), Seq2seq()
    cut = paired.fitting(how, "truncate-left", BART, 16)
    found = asked.held_sources([source], None, cut, how, 9)
    opener = paired.opener(
        BART, how, Examples(overlong="truncate-left", packing=False), length=16, start=START
    )
    rows = opener(source, 0.0).train
    assert [each.ids for each in found] == [ids.tolist() for ids, _ in rows.pairs]
    assert found[0].expected == "jumps over" and found[0].text == "the fox"
    dropped = paired.fitting(how, "drop", BART, 16)
    assert len(asked.held_sources([source], None, dropped, how, 9)) == 2


def test_a_file_of_questions_may_lack_targets(tmp_path):
    rows = [{"document": "the fox"}, {"document": "a", "summary": "b"}]
    path = written(tmp_path, [*rows, {"document": "c", "summary": ""}]).path
    found = asked.read_sources(path, T5, Seq2seq(), 9)
    assert [each.expected for each in found] == [None, "b", None]
    assert found[0].ids == T5.encode("the fox")
    (tmp_path / "p.txt").write_text("the fox\n\na\n")
    found = asked.read_sources(str(tmp_path / "p.txt"), T5, Seq2seq(), 1)
    assert [each.ids for each in found] == [T5.encode("the fox")]


def test_a_tokenizer_is_trained_on_all_texts_but_those_held_out(tmp_path):
    records = [{"source": f"fox {n}", "target": "dog"} for n in range(40)]
    source = written(tmp_path, records)
    every = [*seq2seq.texts([source], Seq2seq())]
    some = [*seq2seq.texts([source], Seq2seq(), 0.3)]
    assert every[:2] == ["fox 0", "dog"] and len(every) == 80
    assert 0 < len(some) < 80 and set(some) < set(every)
