import itertools
import json
import re

import numpy as np
import pytest

from jaxlm.config.objectives import Classification, TokenClassification
from jaxlm.config.schema import Examples, Source
from jaxlm.data import labels_shown
from jaxlm.data.cache import Tokens
from jaxlm.data.classified import Reads
from jaxlm.data.inspect import inspect
from jaxlm.data.labeling import opener
from jaxlm.data.packing import Windows
from jaxlm.data.pipeline import Dataset


def dataset(tokenizer, texts, length):
    documents = [[*tokenizer.encode(text), tokenizer.eos] for text in texts]
    ids = np.array(list(itertools.chain(*documents)), np.uint16)
    offsets = np.cumsum([0, *map(len, documents)])
    rows = Windows(Tokens(ids, offsets, "s", "d"), length, tokenizer.vocab, 0)
    return Dataset((rows,), None, length, 0, None)


TEXTS = ["the fox", "quick brown dog", "jumps"]


def test_a_row_shows_counts_text_and_boundaries(tokenizer):
    data = dataset(tokenizer, TEXTS, 512)
    shown = inspect(data, tokenizer, 5, color=False)
    tokens = data.tokens
    assert shown.startswith(f"row 0: 3 documents, {tokens - 3} of 512 tokens trained, ")
    assert f"{tokens / 512:.1%} filled" in shown
    assert "\x1b" not in shown
    for number, text in enumerate(TEXTS, 1):
        assert f"\n[document {number}] {text}<|endoftext|>" in shown


def test_trained_tokens_are_green_and_the_others_are_not(tokenizer):
    shown = inspect(dataset(tokenizer, TEXTS, 512), tokenizer, 1, color=True)
    green = re.findall("\x1b\\[32m(.*?)\x1b\\[0m", shown)
    assert [part.removesuffix("<|endoftext|>") for part in green] == [
        tokenizer.decode(tokenizer.encode(text)[1:]) for text in TEXTS
    ]


def test_as_many_rows_as_there_are(tokenizer):
    data = dataset(tokenizer, ["the quick brown fox"] * 9, 8)
    assert inspect(data, tokenizer, 2, color=False).count("row ") == 2
    assert inspect(data, tokenizer, 10**6, color=False).count("row ") == data.rows


def test_text_cannot_steer_the_terminal(tokenizer):
    shown = inspect(dataset(tokenizer, ["\x1b[2J\x9b1m\tok"], 64), tokenizer, 1, color=False)
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "\tok" in shown


@pytest.mark.parametrize(
    ("wanted", "record", "shown"),
    [
        (Classification(labels=("no", "yes")), {"text": "the fox", "label": "yes"}, "yes] the fox"),
        (
            Classification(problem="multi", labels=("a", "b", "c")),
            {"text": "fox", "label": ["a", "c"]},
            "a | c] fox",
        ),
        (
            Classification(problem="regression", labels=("x",)),
            {"text": "fox", "label": 2.5},
            "2.5] fox",
        ),
        (
            TokenClassification(labels=("X", "O")),
            {"tokens": ["the", "fox"], "tags": ["O", "X"]},
            "/O",
        ),
    ],
)
@pytest.mark.parametrize("reads", [Reads(), Reads(start=3)], ids=["once", "twice"])
def test_labeled_texts_are_shown_with_their_labels(
    tmp_path, tokenizer, wanted, record, shown, reads
):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(record)}\n" * 2)
    read = opener(tokenizer, wanted, Examples(), reads, length=32)(Source(path=str(path)), 0.0)
    data = Dataset((read.train,), None, 32, 0, None)
    text = labels_shown.inspect(data, tokenizer, wanted, 3, color=False)
    many = 4 if wanted.type == "token_classification" else 2
    assert text.startswith(f"row 0: 2 texts, {many} labels, ") and "\x1b" not in text
    assert text.count(shown) == 2 and "\n[text 2" in text
    assert "\x1b[32m" in labels_shown.inspect(data, tokenizer, wanted, 3, color=True)
