"""Labeled texts are read from every format, by columns that are named or found, or refused."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jaxlm.config.objectives import Classification, TokenClassification
from jaxlm.config.schema import Examples, Source
from jaxlm.core.errors import DataError
from jaxlm.data import labeled
from jaxlm.data.classified import Reads
from jaxlm.data.labeling import opener

ROWS = [("good", "pos"), ("bad, so bad", "neg"), ("fine", "pos")]
KEPT = Examples()


def source(folder, body, name="a.jsonl"):
    """A file with this text, or with these records."""
    path = folder / name
    lines = body if isinstance(body, str) else "".join(json.dumps(row) + "\n" for row in body)
    path.write_text(lines)
    return Source(path=str(path))


def read(folder, body, name="a.jsonl", **wanted):
    """(text, pair, labels) of each record."""
    found = labeled.read(source(folder, body, name), Classification(**wanted))
    return [(one.text, one.pair, one.labels) for one in found]


def tagged(folder, body, **wanted):
    """(words, labels) of each record."""
    found = labeled.read(source(folder, body), TokenClassification(**wanted))
    return [(one.words, one.labels) for one in found]


TABLE = "".join(f'"{text}",{label}\n' for text, label in ROWS)
LINES = "".join(f"{text}\t{label}\n" for text, label in ROWS)
RECORDS = [{"sentence": text, "label": label, "idx": i} for i, (text, label) in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.csv", "text,label\n" + TABLE),
        ("a.csv", TABLE),
        ("a.tsv", LINES),
        ("a.tsv", "sentence\tlabel\n" + LINES),
        ("a.jsonl", RECORDS),
        ("a.json", json.dumps(RECORDS)),
    ],
)
def test_every_format_says_the_same(tmp_path, name, body):
    assert read(tmp_path, body, name) == [(text, None, (label,)) for text, label in ROWS]


def test_of_parquet_too(tmp_path):
    table = pyarrow.table({"text": [text for text, _ in ROWS], "label": [1, 0, 1]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    path = Source(path=str(tmp_path / "a.parquet"))
    assert [one.labels for one in labeled.read(path, Classification())] == [("1",), ("0",), ("1",)]
    assert labeled.names([path], Classification()) == ("0", "1")


def test_pairs_are_found_and_named(tmp_path):
    row = {"premise": "a", "hypothesis": "b", "text": "c", "label": 2}
    assert read(tmp_path, [row]) == [("a", "b", ("2",))]
    assert read(tmp_path, [row], text="text") == [("c", None, ("2",))]
    assert read(tmp_path, [row], text="text", pair="premise", label="hypothesis") == [
        ("c", "a", ("b",))
    ]
    assert read(tmp_path, "a\tb\tx\nc\td\tx\n", "a.tsv") == [("a", "b", ("x",)), ("c", "d", ("x",))]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (["a", "b"], ("a", "b")),
        ([1, 0], ("1", "0")),
        ("a|b c", ("a", "b c")),
        ("a, b", ("a", "b")),
        ('["a", "b"]', ("a", "b")),
        ("", ()),
        ([], ()),
        ("a", ("a",)),
    ],
)
def test_several_labels_are_lists_or_texts(tmp_path, value, found):
    assert read(tmp_path, [{"text": "x", "labels": value}], problem="multi")[0][2] == found


def test_several_labels_may_have_a_column_each(tmp_path):
    body = "id,text,toxic,rude\n7,x,0,1\n8,y,1,1\n9,z,0,0\n"
    found = [labels for *_, labels in read(tmp_path, body, "a.csv", problem="multi")]
    assert found == [("rude",), ("toxic", "rude"), ()]
    wanted = Classification(problem="multi")
    assert labeled.names([source(tmp_path, body, "a.csv")], wanted) == ("rude", "toxic")
    chosen = read(tmp_path, body, "a.csv", problem="multi", labels=("toxic",))
    assert [labels for *_, labels in chosen] == [(), ("toxic",), ()]


def test_numbers_are_numbers(tmp_path):
    body = "text\tscore\nx\t2.5\ny\t-1\n"
    assert [row[2] for row in read(tmp_path, body, "a.tsv", problem="regression")] == [
        (2.5,),
        (-1.0,),
    ]
    wanted = Classification(problem="regression")
    assert labeled.names([source(tmp_path, body, "a.tsv")], wanted) == ("score",)
    several = source(tmp_path, [{"text": "x", "label": [1, 2.5]}])
    assert labeled.names([several], wanted) == ("label_0", "label_1")
    assert read(tmp_path, "x\t2.5\ny\t3\n", "b.tsv", problem="regression")[0][2] == (2.5,)


def test_words_have_a_label_each(tmp_path):
    rows = [{"tokens": ["New", "York"], "ner_tags": ["B-LOC", "I-LOC"], "pos_tags": [1, 2]}]
    assert tagged(tmp_path, rows) == [(("New", "York"), ("B-LOC", "I-LOC"))]
    assert tagged(tmp_path, [{"words": "a b", "tags": "X Y"}]) == [(("a", "b"), ("X", "Y"))]
    assert tagged(tmp_path, rows, label="pos_tags")[0][1] == ("1", "2")


def test_labels_are_in_order_and_numbers_as_they_count(tmp_path):
    rows = [{"text": "x", "label": label} for label in (10, 9, 2, 10)]
    assert labeled.names([source(tmp_path, rows)], Classification()) == ("2", "9", "10")
    rows = [{"text": "x", "label": label} for label in (True, "b", "B")]
    assert labeled.names([source(tmp_path, rows)], Classification()) == ("B", "b", "true")


def test_balanced_weights_give_each_label_the_same(tmp_path):
    rows = [{"text": f"x{i}", "label": i % 5 == 0} for i in range(100)]
    wanted = Classification(labels=("false", "true"))
    counted = labeled.count([source(tmp_path, rows)], wanted)
    assert dict(counted) == {"false": 80, "true": 20}
    weights = labeled.balanced(counted, "x")
    assert weights == (0.625, 2.5) and 80 * weights[0] == 20 * weights[1] == 50
    with pytest.raises(DataError, match="no example has the label 'b'"):
        labeled.balanced({"a": 3, "b": 0}, "x")
    held = labeled.count([source(tmp_path, rows)], wanted, 0.3)
    assert 50 < held.total() < 90


WRONG = [
    ({}, [{"text": "x"}], ":1: no column of label (label, labels, class, target, score); the col"),
    ({}, [{"body": "x", "label": 1}], ":1: no column of text (text, sentence, sentence1 + sentenc"),
    (
        {"text": "body"},
        [{"text": "x", "label": 1}],
        "no column 'body'; the columns are text, label",
    ),
    (
        {"label": "y"},
        [{"text": "x", "label": 1}],
        "no column 'y'; the columns are text, label: name",
    ),
    ({}, [{"text": "x", "label": 1}, {"text": " ", "label": 1}], ":2: text is empty; write at lea"),
    ({}, [{"text": "x", "label": None}], ":1: the label is empty; write one name or id"),
    ({}, [{"text": "x", "label": ["a", "b"]}], ":1: the label is ['a', 'b']; write one name or id"),
    ({}, [{"text": 3, "label": 1}], ":1: text is int, not a string"),
    ({"problem": "multi"}, [{"text": "x", "label": "[a"}], ":1: '[a' is no list that can be read"),
    ({"problem": "multi"}, [{"text": "x", "label": "a|a"}], ":1: label 'a' is there twice"),
    (
        {"problem": "multi"},
        [{"text": "x", "f": 1}, {"text": "y", "f": 2}],
        ":2: f is 2; write 0 or",
    ),
    (
        {"problem": "multi"},
        [{"text": "x", "genres": "a|b"}],
        ":1: no column of label (label, labels",
    ),
    (
        {"problem": "regression"},
        [{"text": "x", "label": "hot"}],
        ":1: the label 'hot' is no number",
    ),
    (
        {"problem": "regression"},
        [{"text": "x", "label": "nan"}],
        ":1: the label 'nan' is no number",
    ),
]


@pytest.mark.parametrize(("wanted", "rows", "line"), WRONG)
def test_what_cannot_be_read_is_one_line(tmp_path, wanted, rows, line):
    with pytest.raises(DataError) as error:
        read(tmp_path, rows, **wanted)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"tokens": ["a", "b"], "tags": ["X"]}, ":1: 2 words and 1 labels; write one for each"),
        ({"tokens": ["a", 3], "tags": ["X", "Y"]}, ":1: tokens holds 3; write a list of texts"),
        ({"tokens": ["a"]}, "no column of label (tags, ner_tags, labels, label)"),
        ({"body": ["a"]}, "no column of words (tokens, words, text)"),
    ],
)
def test_of_words_too(tmp_path, row, line):
    with pytest.raises(DataError) as error:
        tagged(tmp_path, [row])
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("a.tsv", '"A fine day.\t1\nends"\t0\nc\t1\n', [('"A fine day.', None), ('ends"', None)]),
        ("a.csv", '"A fine, day",1\nends,0\nso,1\n', [("A fine, day", None), ("ends", None)]),
        ("a.csv", "hi,hi,1\na,b,1\n", [("hi", "hi"), ("a", "b")]),
        ("a.tsv", "so " * 50000 + "\t1\nb\t1\n", [("so " * 50000, None), ("b", None)]),
    ],
)
def test_a_table_is_read_as_its_format_is(tmp_path, name, body, said):
    found = read(tmp_path, body, name, labels=("0", "1"))
    assert [(text, pair) for text, pair, _ in found][:2] == said


@pytest.mark.parametrize(
    ("text", "tags", "words", "labels"),
    [
        ("[INFO] server up", "O O B", ("[INFO]", "server", "up"), ("O", "O", "B")),
        ("[1]", "[3]", ("[1]",), ("3",)),
        ("[" * 99_999, "O", ("[" * 99_999,), ("O",)),
        ('["a b", "c"]', "O B", ("a b", "c"), ("O", "B")),
    ],
)
def test_words_may_begin_with_a_bracket(tmp_path, text, tags, words, labels):
    assert tagged(tmp_path, [{"text": text, "labels": tags}]) == [(words, labels)]


def test_a_table_whose_columns_have_other_names_is_no_table_without_names(tmp_path):
    with pytest.raises(DataError, match="the columns are review, rating: name one as objective.te"):
        read(tmp_path, "review,rating\nx,1\ny,1\n", "a.csv")


@pytest.mark.parametrize(
    ("labels", "label"), [(("0.5", "1.5", "2.5"), 1), (("-2", "-1"), 1), (("1.0", "2.0"), 0)]
)
def test_where_a_name_is_a_number_no_number_is_an_id(tmp_path, tokenizer, labels, label):
    given = source(tmp_path, [{"text": "fox", "label": label}])
    with pytest.raises(DataError, match=f"jsonl:1: label '{label}' is none of the"):
        opener(tokenizer, Classification(labels=labels), KEPT, Reads(), length=16)(given, 0.0)


def test_numbers_are_in_the_order_of_what_they_count(tmp_path):
    rows = [{"text": "x", "label": label} for label in ("10.0", "9.0", "-1.5")]
    assert labeled.names([source(tmp_path, rows)], Classification()) == ("-1.5", "9.0", "10.0")


def test_the_columns_of_a_file_stay(tmp_path):
    rows = [{"text": "x", "label": "a"}, {"text": "y", "score": 0.0}]
    with pytest.raises(DataError, match="jsonl:2: no column 'label', which the records before it"):
        labeled.names([source(tmp_path, rows)], Classification())


@pytest.mark.parametrize("label", [["a"], []])
def test_one_set_of_labels_is_refused(tmp_path, label):
    rows = [{"text": "x", "label": label}] * 3
    with pytest.raises(DataError, match="there is nothing to tell apart"):
        labeled.names([source(tmp_path, rows)], Classification(problem="multi"))


@pytest.mark.parametrize("label", [1e39, 10**400, [], "1e99", float("nan")])
def test_a_number_that_float32_cannot_hold_is_refused(tmp_path, label):
    wanted = Classification(problem="regression")
    with pytest.raises(DataError, match="jsonl:2: the label"):
        list(
            labeled.read(
                source(tmp_path, [{"text": "x", "label": 1}, {"text": "x", "label": label}]), wanted
            )
        )


def test_one_class_is_refused(tmp_path):
    rows = [{"text": "x", "label": "a"}] * 3
    with pytest.raises(DataError, match="every label is 'a': there is nothing to tell apart"):
        labeled.names([source(tmp_path, rows)], Classification())
    both = [source(tmp_path, rows), source(tmp_path, [{"text": "x", "label": "b"}], "b.jsonl")]
    assert labeled.names(both, Classification()) == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "label", "found"),
    [
        (("no", "yes"), "yes", 1),
        (("no", "yes"), 1, 1),
        (("1", "0"), 0, 1),
        (("no", "yes"), "1", 1),
        (("1.0", "2.0"), 1, 0),
        (("1.0", "2.0"), 2.0, 1),
        (("1", "2"), "2.0", 1),
        (("-1", "1"), "-1", 0),
    ],
)
def test_labels_are_names_or_ids(tmp_path, tokenizer, labels, label, found):
    wanted = Classification(labels=labels)
    given = source(tmp_path, [{"text": "fox", "label": label}])
    rows = opener(tokenizer, wanted, KEPT, Reads(), length=16)(given, 0.0).train
    assert rows.take(np.array([0]), np.array([0]))["targets"].tolist() == [[found]]


@pytest.mark.parametrize("label", ["maybe", 2, "-1", -1])
def test_a_label_that_is_not_in_the_set_is_told_with_the_set(tmp_path, tokenizer, label):
    given = source(tmp_path, [{"text": "fox", "label": "yes"}, {"text": "dog", "label": label}])
    wanted = Classification(labels=("no", "yes"))
    line = rf"a.jsonl:2: label '{label}' is none of the 2 labels: no, yes; correct it"
    with pytest.raises(DataError, match=line):
        opener(tokenizer, wanted, KEPT, Reads(), length=16)(given, 0.0)
