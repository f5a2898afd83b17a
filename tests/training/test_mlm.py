"""Masked language models through the command: learned, resumed, tuned, and refused in one line."""

import json

import processes
import pytest

from jaxlm.core import errors

LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts of one letter each, so that what is hidden is known by the rest; no two are alike."""
    folder = tmp_path_factory.mktemp("mlm")
    texts = [LETTERS[i % 8] * (12 + i // 8) for i in range(96)]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def words(folder, name, *more):
    fixed = "objective.type=mlm model.structure=encoder model.dropout=0 length=32 steps=150 "
    fixed += f"data.train={folder}/a.jsonl data.cache={folder}/cache run_dir={folder}/{name} "
    fixed += "optimizer.learning_rate=1e-2 evaluate.every=0 data.validation=0.2 tokenizer.vocab=260"
    return ["train", *processes.TINY, *fixed.split(), *more]


def last(folder, name):
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").open()][-1]


def test_what_is_hidden_is_learned_and_eval_says_so(folder):
    code, _, error = processes.run(*words(folder, "full", "objective.rows=packed"))
    assert code == errors.DONE, error
    found = last(folder, "full")
    assert found["validation_accuracy"] > 0.5 and "validation_bits_per_byte" not in found
    code, out, error = processes.run("eval", str(folder / "full"))
    said = dict(line.split() for line in out.splitlines())
    assert float(said["accuracy"]) == pytest.approx(found["validation_accuracy"], rel=1e-4), error


@pytest.mark.once
def test_stopped_and_resumed_on_other_devices_is_never_stopped(folder):
    more = ["objective.unit=word", "microbatches=2", "batch=16"]
    more += ["optimizer.schedule.type=constant", "steps=8"]
    _, _, one = processes.run(*words(folder, "whole", *more))
    processes.run(*words(folder, "parts", *more, "steps=4"), devices=2)
    code, _, error = processes.run(*words(folder, "parts", *more), devices=8)
    assert code == errors.DONE, one + error
    losses = [last(folder, name)["validation_loss"] for name in ("whole", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.once
def test_adapters_and_a_frozen_base(folder):
    if not (folder / "full").exists():
        processes.run(*words(folder, "full", "objective.rows=packed"))
    for name, more in {
        "lora": ["lora.rank=2", "frozen_dtype=nf4", "objective.rows=pairs"],
        "head": ["trainable=[embeddings, norms]", "objective.unit=span"],
    }.items():
        given = [*words(folder, name), f"init={folder}/full", "steps=3", *more]
        tuned = [w for w in given if not w.startswith(("model.", "tokenizer"))]
        code, _, error = processes.run(*tuned)
        assert code == errors.DONE, error
        assert last(folder, name)["validation_accuracy"] > 0.3


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["model.structure=decoder"], "objective.type: mlm does not train a model of structure="),
        (["objective.rate=1.5"], "objective.rate must be less than 1, not 1.5"),
        (["objective.hidden=0.95"], "are more than all that is masked; use objective.random=0.05"),
        (["samples.prompts=x"], "samples.prompts: are for models that answer, not for mlm; leave"),
        (["length=3"], "length: 3 leaves no room for text beside 2 special tokens; use 4 or more"),
    ],
)
def test_what_cannot_be_is_one_line(folder, more, line):
    code, _, error = processes.run(*words(folder, "wrong", *more))
    assert code == errors.CONFIG and line in error.splitlines()[-1], error
    assert "Traceback" not in error
