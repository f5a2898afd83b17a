"""Texts as vectors: whatever they are batched with, from files and into files, or one line."""

import json
import shutil

import hubs
import numpy as np
import pyarrow.parquet
import pytest

import jaxlm
from jaxlm import cli
from jaxlm.core import errors
from jaxlm.hub.pooling import write_pooling
from jaxlm.inference import embed
from jaxlm.inference.export import export
from jaxlm.inference.imported import import_folder

TEXTS = ["def main(argument):", "return", "word", "for word in argument: return " * 4]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random BERT, Llama and T5."""
    make = tmp_path_factory.mktemp
    return {name: hubs.write(make(name), name) for name in ("bert", "llama", "t5")}


@pytest.fixture(scope="module")
def models(folders):
    return {name: jaxlm.load(folders[name]) for name in ("bert", "llama")}


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_text_has_the_vector_that_it_has_alone(models, name):
    model = models[name]
    together = model.embed([*TEXTS, *TEXTS[:1] * 70])
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for text, vector in zip(TEXTS, together, strict=False):
        np.testing.assert_allclose(model.embed([text])[0], vector, atol=1e-5)
        ids = [model.tokenizer.encode(text)]
        states = np.asarray(model.hidden(ids))[0]
        state = states.mean(0) if name == "bert" else states[-1]
        np.testing.assert_allclose(vector, state / np.linalg.norm(state), atol=1e-5)
    assert model.embed([]).shape == (0, together.shape[1])


def test_what_is_longer_than_the_model_is_refused_or_cut(models):
    model = models["bert"]
    long = "word " * 200
    with pytest.raises(errors.DataError, match=r"text 2: \d+ tokens are more than the model's"):
        model.embed(["word", long])
    ids = model.tokenizer.encode(long, add_special=False)[: model.spec.max_length]
    np.testing.assert_allclose(
        model.embed([long], overlong="truncate-right"),
        model.embed([model.tokenizer.decode(ids)]),
        atol=1e-5,
    )


def test_how_texts_are_pooled_leaves_with_the_model_and_comes_back(folders, tmp_path):
    shutil.copytree(folders["bert"], tmp_path / "first")
    write_pooling(tmp_path / "first", "first", 32)
    want = jaxlm.load(folders["bert"]).embed(TEXTS, "first")
    import_folder(f"{tmp_path}/first", f"{tmp_path}/in", dtype=None, warn=print)
    export(f"{tmp_path}/in", f"{tmp_path}/out", dtype=None, max_shard_bytes=10**9)
    for name in ("first", "in", "out"):
        np.testing.assert_allclose(jaxlm.load(tmp_path / name).embed(TEXTS), want, atol=1e-5)
    modules = json.loads((tmp_path / "out" / "modules.json").read_text())
    modules.append({"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "out" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(errors.DataError, match="modules.json: has Dense, which changes"):
        jaxlm.load(tmp_path / "out")


def run(capsys, *words):
    code = cli.run(["embed", *map(str, words), "--platform", "cpu"])
    return code, capsys.readouterr()


@pytest.mark.parametrize("suffix", embed.WRITERS)
@pytest.mark.parametrize("source", ["t.txt", "t.jsonl", "t.csv"])
def test_files_in_and_out_are_in_one_order(folders, models, tmp_path, capsys, source, suffix):
    lines = {
        "t.txt": "".join(f"{text}\n" for text in TEXTS),
        "t.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS),
        "t.csv": "text,n\n" + "".join(f'"{text}",1\n' for text in TEXTS),
    }
    (tmp_path / source).write_text(lines[source])
    out = tmp_path / f"out{suffix}"
    code, said = run(capsys, folders["bert"], "--input", tmp_path / source, "--output", out)
    assert code == errors.DONE and "4 vectors of " in said.out, said.err
    if suffix == ".npy":
        found = np.load(out)
        assert found.dtype == np.float32
    elif suffix == ".jsonl":
        rows = list(map(json.loads, out.read_text().splitlines()))
        found = np.array([row["embedding"] for row in rows])
        assert [row["text"] for row in rows] == TEXTS
    else:
        table = pyarrow.parquet.read_table(out)
        found = np.array(table["embedding"].to_pylist())
        assert table["text"].to_pylist() == TEXTS
    np.testing.assert_allclose(found, models["bert"].embed(TEXTS), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("model", "source", "more", "code", "line"),
    [
        ("bert", "word\n", ["--output", "o.txt"], 2, "o.txt is none of .npy, .jsonl, .parquet"),
        ("bert", "word\n", ["--output", "no/o.npy"], 2, "no/o.npy is in no folder that exists"),
        ("bert", "word\n", ["--pool", "max"], 2, "pool: 'max' is none of mean, first, last"),
        ("llama", "word\n", ["--pool", "first"], 2, "a decoder's first state has seen one token"),
        ("t5", "word\n", [], 2, "is an encoder-decoder; texts are embedded by an encoder or"),
        ("bert", "", [], 3, "t.txt:1: the line is empty"),
        ("bert", "a\n\nb\n", [], 3, "t.txt:2: the line is empty; write a text, or leave it out"),
        ("bert", "ok\n" + "word " * 200, [], 3, "t.txt:2: "),
    ],
)
def test_what_cannot_be_embedded_is_one_line(
    folders, tmp_path, capsys, monkeypatch, model, source, more, code, line
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text(source)
    given = "--input", "t.txt", "--output", "o.npy", *more
    found, said = run(capsys, folders[model], *given)
    assert found == code and line in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "o.npy").exists()


def test_a_record_without_a_text_is_named(folders, tmp_path, capsys):
    (tmp_path / "t.jsonl").write_text('{"body": "word"}\n{"body": ""}\n')
    given = folders["bert"], "--input", tmp_path / "t.jsonl", "--output", tmp_path / "o.npy"
    code, said = run(capsys, *given)
    assert code == errors.DATA and "t.jsonl:1: no column 'text'" in said.err
    code, said = run(capsys, *given, "--field", "body")
    assert code == errors.DATA and "t.jsonl:2: body is empty" in said.err
