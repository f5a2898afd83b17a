"""Classifiers through `jaxlm train`: a toy task is learned, resumed, split over devices, or
refused in one line.
"""

import json

import processes
import pytest

import jaxlm

WORDS = ("red", "blue", "sun", "moon", "tree", "lake", "bird", "stone")
BART = (
    "model.structure=encoder-decoder",
    "model.positions=learned",
    "model.norm.type=layer",
    "model.norm.place=sum",
    "model.encoder.layers=1",
)
KINDS = {
    "encoder": ("model.structure=encoder",),
    "decoder": (),
    "bart": BART,
}
PLAIN = "batch=8 length=32 model.layers=1 model.embed=32 model.heads=4 tokenizer.vocab=400 "
PLAIN += "log.every=1 platform=cpu objective.type=classification "
PLAIN += "optimizer.learning_rate=3e-3 evaluate.every=1000"


def write(folder, count=400):
    """Texts that are warm when `red` stands in them and cold when `blue` does."""
    lines = ["text,label\n"]
    for i in range(count):
        others = [WORDS[2 + (i * k + k) % 6] for k in (1, 5, 7)]
        others.insert(i % 4, WORDS[i % 2])
        lines.append(f"{' '.join(others)} {i},{('warm', 'cold')[i % 2]}\n")
    path = folder / "colors.csv"
    path.write_text("".join(lines))
    return path


def words(folder, kind, *more, name="run"):
    path = folder / "colors.csv"
    path = path if path.exists() else write(folder)
    data = f"data.train={path}", "data.validation=0.2", f"run_dir={folder}/{name}"
    return ["train", *PLAIN.split(), *KINDS[kind], *data, *more]


@pytest.mark.parametrize("kind", KINDS)
def test_a_toy_task_is_learned_by_every_structure(tmp_path, kind):
    code, out, err = processes.run(*words(tmp_path, kind, "steps=60"))
    assert code == 0, err
    assert "400 examples of text, label" in out + err and "labels: " in out + err
    losses = processes.losses(tmp_path)
    last = processes.rows(tmp_path)[-1]
    assert losses[-1] < losses[0] / 2
    assert last["validation_accuracy"] > 0.9 and last["validation_examples"] > 40
    table = json.loads((tmp_path / "run" / "confusion.json").read_text())
    assert list(table["labels"]) == ["cold", "warm"] and table["step"] == 60
    assert sum(map(sum, table["confusion"])) == last["validation_examples"]


@pytest.mark.once
def test_stopped_and_resumed_is_never_stopped_bit_for_bit(tmp_path):
    more = "checkpoint.every=3", "objective.class_weights=balanced", "model.dropout=0.1"
    digests = []
    for name, stops in (("whole", (6,)), ("parts", (3, 6))):
        for steps in stops:
            line = words(tmp_path, "encoder", f"steps={steps}", *more, name=name)
            code, _, err = processes.run(*line, "optimizer.schedule.type=constant")
            assert code == 0, err
        code, out, _ = processes.run("checkpoint", "digest", str(tmp_path / name))
        digests.append(out)
    assert digests[0] == digests[1] and digests[0].startswith("6 ")
    config = (tmp_path / "parts" / "config.yaml").read_text()
    assert "balanced" not in config and "- cold" in config


@pytest.mark.once
def test_microbatches_and_devices_do_not_change_the_loss(tmp_path):
    more = "steps=3", "batch=16", "objective.label_smoothing=0.1", "objective.class_weights=[1, 3]"
    ran = []
    for name, parts, devices in (("one", 1, 1), ("parts", 2, 1), ("eight", 1, 8)):
        line = words(tmp_path, "encoder", *more, f"microbatches={parts}", name=name)
        code, _, err = processes.run(*line, devices=devices)
        assert code == 0, err
        ran.append(processes.losses(tmp_path, name))
    assert ran[1] == pytest.approx(ran[0], rel=1e-5)
    assert ran[2] == pytest.approx(ran[0], rel=1e-5)


def test_words_are_learned_and_scored_as_entities(tmp_path):
    rows = []
    for i in range(200):
        some = [WORDS[2 + (i * k + k) % 6] for k in (1, 5)]
        place = i % 3
        rows.append(
            {
                "tokens": [*some[:place], "red", f"n{i}", *some[place:]],
                "tags": ["O"] * place + ["B-X", "I-X"] + ["O"] * (2 - place),
            }
        )
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = PLAIN.replace("=classification", "=token_classification")
    own = "model.structure=encoder data.validation=0.2 steps=60"
    line = f"train {plain} {own} data.train={path} run_dir={tmp_path}/run"
    code, out, err = processes.run(*line.split())
    assert code == 0, err
    last = processes.rows(tmp_path)[-1]
    assert last["validation_accuracy"] > 0.9 and last["validation_entity_f1"] > 0.9
    found = json.loads((tmp_path / "run" / "confusion.json").read_text())
    assert list(found["entities"]) == ["X"] and list(found["labels"]) == ["B-X", "I-X", "O"]
    code, out, err = processes.run("eval", str(tmp_path / "run"))
    assert code == 0 and "entity_f1 " in out and "true" in out


@pytest.mark.once
@pytest.mark.parametrize(
    ("columns", "more", "asked"),
    [
        (("text",), (), ("text",)),
        (("sentence1", "sentence2"), (), ("sentence1", "sentence2")),
        (("text", "note"), ("objective.text=note",), ("note",)),
    ],
)
def test_a_run_predicts_by_the_columns_that_it_learned_from(tmp_path, columns, more, asked):
    rows = [[f"{word} {i}" for i, _ in enumerate(columns)] for word in WORDS]
    table = [[*columns, "label"], *([*row, "ab"[i % 2]] for i, row in enumerate(rows))]
    (tmp_path / "colors.csv").write_text("".join(",".join(row) + "\n" for row in table))
    line = [w for w in words(tmp_path, "encoder", "steps=1", *more) if "validation" not in w]
    code, _, err = processes.run(*line)
    assert code == 0, err
    record = {"sentence1": "red sun", "sentence2": "lake", "text": "a moon", "note": "stone tree"}
    (tmp_path / "new.jsonl").write_text(json.dumps(record) + "\n")
    run = str(tmp_path / "run")
    code, out, err = processes.run("predict", run, "--input", str(tmp_path / "new.jsonl"))
    assert code == 0, err
    (want,) = jaxlm.load(run).predict(*([record[name]] for name in asked))
    found = json.loads(out)["probabilities"]
    assert found == pytest.approx(want["probabilities"], abs=1e-5)


def test_what_cannot_be_trained_is_one_line(tmp_path):
    one = tmp_path / "one.csv"
    one.write_text("text,label\nx,a\ny,a\n")
    bad = tmp_path / "bad.csv"
    bad.write_text("text,label\nx,a\ny,c\nz,b\n")
    wrong = [
        ((f"data.train={one}",), 3, "every label is 'a': there is nothing to tell apart"),
        (
            (f"data.train={bad}", "objective.labels=[a,b]"),
            3,
            f"{bad}:3: label 'c' is none of the 2",
        ),
        ((f"data.train={one}", "objective.labels=[a,b]"), 3, "data.train: every label is 'a'"),
        (
            ("data.replay={path: stdlib, weight: 0.1}",),
            2,
            "data.replay replays documents, which objec",
        ),
        (("samples.prompts=validation",), 2, "samples.prompts: are for models that answer"),
        (("objective.class_weights=[1,2,3]", "objective.labels=[warm,cold]"), 2, "for 2 labels"),
    ]
    for more, want, text in wrong:
        line = words(tmp_path, "encoder", "steps=1", *more)
        line = [w for w in line if w != "data.validation=0.2"]
        code, _, err = processes.run(*line)
        assert code == want and text in err.splitlines()[-1] and "Traceback" not in err, err
