"""Runs that learn embeddings: they learn, are resumed, adapted, and embed what they learned."""

import json

import numpy as np
import processes
import pytest

import jaxlm
from jaxlm.checkpoint import inspect
from jaxlm.core import errors, tree

COLORS = {"red": "rot", "blue": "azul", "green": "vert", "black": "nero", "white": "bily"}
COLORS |= {"pink": "roze", "gold": "dorado", "gray": "sivi"}
THINGS = {"cat": "neko", "dog": "hund", "fox": "renard", "bird": "ave", "fish": "ryba"}
THINGS |= {"horse": "cavallo", "cow": "lehma", "pig": "varken"}
"""What they are in some other language."""


def words(folder, *more, name="run", structure="encoder"):
    """A run on phrases and what they are in other languages, which share few letters."""
    path = folder / "pairs.jsonl"
    if not path.exists():
        rng, lines = np.random.default_rng(0), []
        for color, thing in zip(
            rng.choice([*COLORS], 300), rng.choice([*THINGS], 300), strict=True
        ):
            pair = {"query": f"{color} {thing}", "document": f"{THINGS[thing]} {COLORS[color]}"}
            lines.append(json.dumps(pair) + "\n")
        path.write_text("".join(lines))
    tiny = [word for word in processes.TINY if not word.startswith(("batch", "length"))]
    own = f"objective.type=contrastive data.train={path} data.validation=0.1 batch=32 length=16 "
    own += f"microbatches=2 optimizer.learning_rate=1e-2 run_dir={folder}/{name} steps=48 "
    own += f"model.structure={structure} evaluate.every=24 checkpoint.every=24 "
    own += "optimizer.schedule.type=constant"
    return ["train", *tiny, *own.split(), *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder with a run of an encoder, which was never stopped."""
    folder = tmp_path_factory.mktemp("contrastive")
    code, _, error = processes.run(*words(folder))
    assert code == errors.DONE, error
    return folder


def test_it_learns_to_find_what_belongs(trained):
    rows = processes.rows(trained)
    scored = [row for row in rows if "validation_loss" in row]
    losses = processes.losses(trained)
    assert losses[-1] < losses[0] / 2
    assert scored[-1]["validation_accuracy"] > 0.7 > rows[0]["accuracy"]
    assert scored[-1]["validation_mrr"] >= scored[-1]["validation_accuracy"]
    assert scored[-1]["validation_examples"] > 10
    (audit,) = json.loads((trained / "run" / "audit.json").read_text())
    assert audit["kept"] + audit["held"] == audit["examples"] == 300


def test_a_score_is_the_same_on_any_number_of_devices(trained):
    """Rows are compared with those of their batch, which is no larger where it does not split."""
    one, three = (processes.run("eval", str(trained / "run"), devices=n)[1] for n in (1, 3))
    assert "mrr" in one and one == three


def test_stopped_and_continued_is_never_stopped(trained):
    for steps in (24, 48):
        code, _, error = processes.run(*words(trained, f"steps={steps}", name="again"))
        assert code == errors.DONE, error
    found = [inspect.digest(f"{trained}/{name}/checkpoints") for name in ("run", "again")]
    assert found[0] == found[1] and found[0][0] == 48
    assert processes.losses(trained) == processes.losses(trained, "again")


def test_the_trained_model_embeds(trained, tmp_path):
    model = jaxlm.load(trained / "run")
    asked = [f"{color} {thing}" for color in COLORS for thing in THINGS]
    told = [f"{THINGS[thing]} {COLORS[color]}" for color in COLORS for thing in THINGS]
    near = model.embed(asked) @ model.embed(told).T
    assert (near.argmax(1) == np.arange(len(asked))).mean() > 0.7
    (tmp_path / "t.csv").write_text("body,n\n" + "".join(f"{text},0\n" for text in asked))
    given = "embed", str(trained / "run"), "--input", str(tmp_path / "t.csv")
    code, out, error = processes.run(*given, "--output", str(tmp_path / "t.npy"), "--field", "body")
    assert code == errors.DONE and "64 vectors of 32 numbers" in out, error
    np.testing.assert_allclose(np.load(tmp_path / "t.npy"), model.embed(asked), atol=1e-5)


@pytest.mark.once
def test_adapters_learn_alone_on_a_decoder(tmp_path):
    """By last token, from a base of another objective; the base stays as it was."""
    base = f"data.train={tmp_path}/text.txt steps=1 run_dir={tmp_path}/base length=32"
    (tmp_path / "text.txt").write_text("see how red this dog is, and how blue that cat\n" * 40)
    plain = [word for word in processes.TINY if not word.startswith("length")]
    code, _, error = processes.run("train", *plain, *base.split())
    assert code == errors.DONE, error
    more = f"init={tmp_path}/base lora.rank=8 lora.targets=all-linear evaluate.general=null"
    more += " objective.pool=mean"
    given = words(tmp_path, *more.split(), "optimizer.learning_rate=2e-2", "steps=30")
    given = [word for word in given if not word.startswith(("model.", "tokenizer."))]
    code, _, error = processes.run(*given)
    assert code == errors.DONE, error
    losses = processes.losses(tmp_path)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    first, last = (jaxlm.load(tmp_path / name).params for name in ("base", "run"))
    held = {name: leaf for name, leaf in tree.flatten(last).items() if "lora_" not in name}
    assert all(np.array_equal(leaf, tree.flatten(first)[name]) for name, leaf in held.items())
    # The adapter keeps how its texts are pooled.
    out = tmp_path / "adapter"
    code, _, error = processes.run("adapter", "export", str(tmp_path / "run"), str(out))
    assert code == errors.DONE, error
    texts = ["red cat", "blue dog"]
    adapted = jaxlm.load(tmp_path / "base").with_adapter(out)
    want = jaxlm.load(tmp_path / "run").embed(texts)
    np.testing.assert_allclose(adapted.embed(texts), want, atol=1e-5)
    # Another pooling gives other vectors, by far more than the tolerance above.
    assert not np.allclose(adapted.embed(texts, "last"), want, atol=2e-4)


@pytest.mark.once
def test_the_head_takes_no_part(tmp_path):
    """It is neither trained nor decayed, and cannot be asked to be."""
    more = "model.tied=false steps=2 optimizer.weight_decay=0.5 microbatches=1"
    code, _, error = processes.run(*words(tmp_path, *more.split()))
    assert code == errors.DONE, error
    fresh = processes.run(*words(tmp_path, *more.split(), "steps=1", name="one"))
    assert fresh[0] == errors.DONE
    one, two = (tree.flatten(jaxlm.load(tmp_path / name).params) for name in ("one", "run"))
    same = {name for name, leaf in one.items() if np.array_equal(leaf, two[name])}
    assert same == {"head/kernel"}
    code, _, error = processes.run(*words(tmp_path, "trainable=[head]", name="no"))
    assert code == errors.CONFIG and "head" in error.splitlines()[-1]


def test_texts_alone_need_noise(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"text": "a cat"}\n{"text": "a dog"}\n' * 40)
    line = words(tmp_path, "data.validation=null", "evaluate.every=0", "steps=1")
    code, _, error = processes.run(*line, "model.dropout=0")
    assert code == errors.CONFIG and "model.dropout: 0 makes a text and its positive" in error
    code, _, error = processes.run(*line, "model.dropout=0.1", "batch=1", "microbatches=1")
    assert code == errors.CONFIG and "batch: 1 leaves a text nothing to be told from" in error
    code, _, error = processes.run(*line, "model.dropout=0.1")
    assert code == errors.DONE, error


def test_it_is_asked_nothing(tmp_path):
    """Its head is not learned, so that its answers would say nothing."""
    more = f"samples.prompts={tmp_path}/asked.txt"
    code, _, error = processes.run(*words(tmp_path, more, structure="decoder"))
    assert code == errors.CONFIG and "models that answer, not for contrastive" in error, error
