"""Labels with probabilities, from Python and of files, or one line that says what is wrong."""

import json

import hubs
import numpy as np
import processes
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.text.train import train

TOKENIZER = train("bpe", 380, ["the quick brown fox jumps over the lazy dog\n" * 9], "encoder")
TEXTS = ["the fox", "dog", "the quick brown fox jumps over", "lazy lazy dog"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(name of a configuration, keys of its config.json) -> a folder."""

    def write(name, **keys):
        folder = tmp_path_factory.mktemp("model")
        return hubs.write(folder, name, tokenizer=TOKENIZER, **keys)

    return write


def alone(model, text, pair=None):
    """The scores of one text without padding."""
    ids = [TOKENIZER.encode(each, add_special=False) for each in (text, pair) if each is not None]
    return np.asarray(model.logits([TOKENIZER.joined(*ids)[0]]))[0]


@pytest.mark.parametrize("name", ["roberta sequence", "bart sequence"])
def test_a_text_in_a_batch_has_the_label_that_it_has_alone(models, name):
    model = jaxlm.load(models(name))
    for text, found in zip(TEXTS, model.predict(TEXTS), strict=True):
        scores = alone(model, text)
        shares = np.exp(scores) / np.exp(scores).sum()
        assert list(found["probabilities"]) == list(model.labels)
        np.testing.assert_allclose(list(found["probabilities"].values()), shares, atol=1e-5)
        assert found["prediction"] == model.labels[int(shares.argmax())]
    (pair,) = model.predict(TEXTS[:1], ["dog"])
    scores = alone(model, TEXTS[0], "dog")
    assert pair["prediction"] == model.labels[int(scores.argmax())]


def test_several_labels_are_those_over_a_half_and_numbers_are_as_they_are(models):
    model = jaxlm.load(models("roberta sequence", problem_type="multi_label_classification"))
    for text, found in zip(TEXTS, model.predict(TEXTS), strict=True):
        over = {name for name, share in found["probabilities"].items() if share > 0.5}
        assert set(found["prediction"]) == over
        shares = 1 / (1 + np.exp(-alone(model, text)))
        np.testing.assert_allclose(list(found["probabilities"].values()), shares, atol=1e-5)
    model = jaxlm.load(models("roberta sequence", problem_type="regression"))
    for text, found in zip(TEXTS, model.predict(TEXTS), strict=True):
        assert found == {"prediction": pytest.approx(alone(model, text).tolist(), abs=1e-4)}


def test_of_words_each_has_the_label_of_its_first_token(models):
    model = jaxlm.load(models("roberta tokens"))
    words = ["the", "foxtrot", "dog"]
    (found, same) = model.predict([words, " ".join(words)])
    assert found == same and len(found["prediction"]) == len(found["probabilities"]) == 3
    scores = alone(model, " ".join(words))
    firsts = [TOKENIZER.encode(text, add_special=False) for text in ("the", "the foxtrot")]
    for at, label in zip(
        (1, 1 + len(firsts[0]), 1 + len(firsts[1])), found["prediction"], strict=True
    ):
        assert label == model.labels[int(scores[at].argmax())]


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_of_a_file_each_line_has_its_columns_and_its_label(models, tmp_path):
    folder = models("roberta sequence")
    want = jaxlm.load(folder).predict(TEXTS)
    table = tmp_path / "a.csv"
    table.write_text("id,text,label\n" + "".join(f"{i},{t},x\n" for i, t in enumerate(TEXTS)))
    (tmp_path / "a.txt").write_text("\n   \n".join(TEXTS) + "\n")
    out = tmp_path / "out.jsonl"
    line = "predict", str(folder), "--platform", "cpu", "--input"
    code, _, err = processes.run(*line, str(table), "--output", str(out))
    assert code == 0, err
    found = lines(out.read_text())
    assert [(row["id"], row["text"], row["label"]) for row in found] == [
        (str(i), text, "x") for i, text in enumerate(TEXTS)
    ]
    assert [row["prediction"] for row in found] == [each["prediction"] for each in want]
    code, said, err = processes.run(*line, str(tmp_path / "a.txt"))
    assert code == 0 and [row["text"] for row in lines(said)] == TEXTS
    assert [row["probabilities"] for row in lines(said)] == [row["probabilities"] for row in found]


def test_adapters_of_the_line_label(models, tmp_path):
    folder = models("roberta sequence")
    model = jaxlm.load(folder)
    hubs.write_adapter(model, tmp_path / "one", 1)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    line = "predict", str(folder), "--input", str(tmp_path / "a.txt"), "--platform", "cpu"
    code, said, err = processes.run(*line, "--adapter", str(tmp_path / "one"))
    assert code == 0, err
    found = [row["probabilities"] for row in lines(said)]
    want = model.with_adapter(tmp_path / "one").predict(TEXTS)
    assert found == [each["probabilities"] for each in want]
    assert found != [each["probabilities"] for each in model.predict(TEXTS)]


@pytest.mark.parametrize(
    ("body", "more", "code", "line"),
    [
        ('{"body": "x"}', (), 3, "a.jsonl:1: no column of text (text, sentence, "),
        ('{"text": "x"}\n{"text": " "}', (), 3, "a.jsonl:2: text is empty"),
        (
            '{"text": "' + "fox " * 99 + '"}',
            (),
            3,
            "positions; cut it, or use overlong=truncate-right",
        ),
        ('{"text": "x", "prediction": 1}', (), 3, "a.jsonl:1: has a column 'prediction', which"),
        ('{"text": "x"}', ("--input", "stdlib"), 3, "stdlib: is a source to train on, not a file"),
        ('{"text": "x"}', ("--overlong", "drop"), 2, "overlong: 'drop' is none of error, "),
        ('{"text": "x"}', ("--output", "a.jsonl"), 2, "a.jsonl is the input; name another file"),
        ('{"text": "x"}', ("--output", "o.csv"), 2, "o.csv is none of .jsonl"),
        ('{"text": "x"}', ("--output", "no/o.jsonl"), 2, "no/o.jsonl is in no folder that"),
        ("", (), 3, "a.jsonl: "),
        ('{"body": "x", " label": 1}', (), 3, "are body, ' label': name one as --text"),
        ('{"text": "x"}', ("--pair", "other"), 3, "no column 'other'; the columns are text: name"),
        ('{"text": "x"}\n{"text": ""}', ("--output", "o.jsonl"), 3, "a.jsonl:2: text is empty"),
    ],
)
def test_what_cannot_be_labeled_is_one_line(models, tmp_path, monkeypatch, body, more, code, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(body)
    folder = str(models("roberta sequence"))
    got, _, err = processes.run("predict", folder, "--input", "a.jsonl", "--platform", "cpu", *more)
    assert got == code and line in err.splitlines()[-1] and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_what_is_no_classifier_and_no_list_is_refused(models):
    with pytest.raises(ConfigError, match="model: has no labels to predict; train it with"):
        jaxlm.load(models("bert")).predict(["x"])
    model = jaxlm.load(models("roberta sequence"))
    with pytest.raises(DataError, match=r"texts: are a list of texts"):
        model.predict("x")
    assert model.predict([]) == []
    cut = model.predict(["fox " * 99], overlong="truncate-left")
    assert len(cut) == 1 and cut[0]["prediction"] in model.labels
