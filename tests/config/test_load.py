"""Files, bases, overrides and presets become one configuration; every error is one exact line."""

import json
from pathlib import Path

import pytest

from jaxlm.config import keys
from jaxlm.config.load import changes, dump, load, presets, schema
from jaxlm.core.errors import ConfigError

BASE = "steps: 10\ndata:\n  train: corpus.txt\n"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes x.yaml in an empty working folder and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="x.yaml"):
        (tmp_path / name).write_text(text)
        return name

    return write


def said(name, *overrides):
    with pytest.raises(ConfigError) as error:
        load(name, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_overrides_reach_everywhere(file):
    config = load(
        file(BASE),
        [
            "optimizer.schedule.warmup=5",
            "optimizer.learning-rate=1e-4",
            "data.train.0.weight=2",
            "data.train.1.path=b.jsonl",
            "model.norm.type=layer",
            "trainable=lora_[ab]$",
        ],
    )
    assert config.optimizer.type == "adamw" and config.optimizer.learning_rate == 1e-4
    assert config.optimizer.schedule.type == "cosine" and config.optimizer.schedule.warmup == 5
    assert [(s.path, s.weight) for s in config.data.train] == [("corpus.txt", 2), ("b.jsonl", None)]
    assert config.model.norm.type == "layer" and config.trainable == ("lora_[ab]$",)


def test_the_last_override_of_a_key_wins_and_a_whole_section_replaces(file):
    name = file(BASE + "optimizer:\n  eps: 1e-6\n")
    assert load(name, ["steps=1", "steps=2"]).steps == 2
    assert load(name, ["optimizer={type: lion, b1: 0.5}"]).optimizer.b1 == 0.5


def test_extends_merges_sections_and_replaces_lists(file):
    file("batch: 4\nmodel:\n  layers: 2\n  heads: 2\ntrainable: [a, b]\n", "base.yaml")
    config = load(file(BASE + "extends: base.yaml\nmodel:\n  heads: 8\ntrainable: c\n"))
    assert (config.batch, config.model.layers, config.model.heads) == (4, 2, 8)
    assert config.trainable == ("c",)


@pytest.mark.parametrize(
    "text", ["last_layers: 2", "last_layers:2", "[last_layers: 2]", "{last_layers: 2}"]
)
def test_last_layers_is_one_text_however_it_is_written(file, text):
    config = load(None, ["data.train=x", "steps=1", f"trainable={text}"])
    assert config.trainable == ("last_layers: 2",)
    assert load(file(dump(config))).trainable == config.trainable


def test_a_base_is_found_beside_its_file(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "x.yaml").write_text("extends: base.yaml\n")
    assert load(str(tmp_path / "x.yaml")).steps == 10


WRONG = Path(__file__).with_name("wrong_overrides.txt").read_text().splitlines()[1:]


@pytest.mark.parametrize(("override", "line"), [*zip(WRONG[::2], WRONG[1::2], strict=True)])
def test_a_wrong_override_is_one_line(file, override, line):
    assert said(file(BASE), override) == f"override {override!r}: {line.strip()}"


FILES = {
    BASE + "model:\n  layer: 4\n": "5: unknown key model.layer; did you mean model.layers?",
    BASE + "model:\n  embed: 10\n  heads: 3\n": (
        "5: model.embed=10 does not split over model.heads=3; set head_dim"
    ),
    BASE + "batch: 1.5\n": "4: batch must be a whole number, not 1.5",
    BASE + "steps: 5\n": "4: key steps stands twice, first at x.yaml:1; keep one",
    BASE + "lora:\n  targets:\n  - q\n  - [k]\n": "7: lora.targets.1 must be text, not ['k']",
    BASE + "optimizer:\n  type: muon\n  eps: 1e-6\n": (
        "6: optimizer.type=muon has no key optimizer.eps; "
        "remove it, or use type=adamw or schedule_free_adamw"
    ),
    "steps: 1\ndata: {trian: x}\n": "2: unknown key data.trian; did you mean data.train?",
    "steps: 1\ndata:\n": "2: data must be a section of keys, not null",
    BASE + "extends: 5\n": "4: extends must be the name of one file or preset",
    BASE + "extends: x.yaml\n": (
        "4: a file that x.yaml extends may not extend another; write its keys out"
    ),
    "steps: 1\n": (
        " missing key data.train; add it: One source or a list; with weights, a mixture."
    ),
    BASE + "init: base\nevaluate: {max_forgetting: 0.1, general: null}\n": (
        "5: evaluate.max_forgetting=0.1 needs evaluate.general; add it, or leave this out"
    ),
    "data: {train: x}\n": " the run has no end; add steps=1000, or epochs=1",
}


@pytest.mark.parametrize(("text", "line"), FILES.items())
def test_a_wrong_file_names_its_line(file, text, line):
    assert said(file(text)) == f"x.yaml:{line}"


def test_a_wrong_key_in_the_base_names_the_base(file):
    file("model:\n  emed: 3\n", "base.yaml")
    line = "base.yaml:2: unknown key model.emed; did you mean model.embed?"
    assert said(file(BASE + "extends: base.yaml\n")) == line


def test_a_type_over_keys_of_another_names_them_all(file):
    name = file(BASE + "optimizer:\n  weight_decay: 0\n  b2: 0.9\n  eps: 1e-6\n")
    assert said(name, "optimizer.type=adafactor") == (
        "override 'optimizer.type=adafactor': adafactor has no key b2 (x.yaml:6), eps (x.yaml:7); "
        "remove it, or write the whole section: 'optimizer={type: adafactor}'"
    )


def test_a_file_that_is_not_there_gets_a_suggestion(file):
    file(BASE, "medium.yaml")
    line = "medum.yaml: is neither a file, a run nor a preset; did you mean medium.yaml?"
    assert said("medum.yaml") == line
    assert "did you mean quickstart?" in said("quickstrat")


def test_a_run_folder_is_its_config(file, tmp_path):
    (tmp_path / "run").mkdir()
    file(BASE, "run/config.yaml")
    assert load("run").steps == 10


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_and_its_dump_is_the_same_run(name, tmp_path):
    config = load(name)
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(str(tmp_path)) == config
    assert changes(config, load(str(tmp_path))) == []


def test_changes_are_dotted_leaves(file):
    old = load(file(BASE))
    new = load("x.yaml", ["optimizer.type=lion", "data.train.1=b", "steps=20"])
    found = {key: (a, b) for key, a, b in changes(old, new)}
    assert found["steps"] == (10, 20)
    assert found["optimizer.type"] == ("adamw", "lion") and found["optimizer.eps"] == (1e-8, None)
    assert found["data.train.1.path"] == (None, "b")


def test_the_schema_names_every_key_and_lets_type_be_left_out():
    text = json.dumps(schema())
    names = {key.rpartition(".")[2] for key in keys.documented()} | {"extends"}
    assert all(f'"{name}"' in text for name in names)
    assert "oneOf" not in text


def test_names_that_others_use_lead_to_keys_that_exist():
    known = keys.documented()
    for meant in keys.ELSEWHERE.values():
        assert any(key == meant or key.startswith(f"{meant}.") for key in known), meant
