"""Sources and targets of documents through the command: learned, resumed, tuned, asked, refused."""

import json

import processes
import pytest

from jaxlm.core import errors

LETTERS = "abcdefgh"
T5 = "objective.type=span_corruption", "objective.rows=padded", "model.positions=relative"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts of one letter each, so that what is missing is known by the rest; no two are alike."""
    folder = tmp_path_factory.mktemp("denoised")
    texts = [LETTERS[i % 8] * (12 + i // 8) for i in range(96)]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def words(folder, name, *more, structure="encoder-decoder"):
    fixed = f"model.structure={structure} model.dropout=0 length=32 steps=100 "
    fixed += f"data.train={folder}/a.jsonl data.cache={folder}/cache run_dir={folder}/{name} "
    fixed += "optimizer.learning_rate=1e-2 evaluate.every=0 data.validation=0.2 tokenizer.vocab=359"
    return ["train", *processes.TINY, *fixed.split(), *more]


def last(folder, name):
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").open()][-1]


def trained(folder, name, *more, structure="encoder-decoder"):
    """The last row of metrics of a run, which has learned."""
    code, _, error = processes.run(*words(folder, name, *more, structure=structure))
    assert code == errors.DONE, error
    found = last(folder, name)
    assert found["validation_accuracy"] > 0.7
    return found


def asked(folder, name):
    """What a run answers to a letter, but for what it begins with."""
    given = "--prompt", "cccccccc", "--max-tokens", "6", "--platform", "cpu"
    code, out, error = processes.run("generate", str(folder / name), *given)
    assert code == errors.DONE, error
    return out.strip().removeprefix("cccccccc")


def test_span_corruption_of_a_t5_is_learned_and_eval_says_so(folder):
    found = trained(folder, "t5", *T5)
    _, out, error = processes.run("eval", str(folder / "t5"))
    said = dict(line.split() for line in out.splitlines())
    assert float(said["accuracy"]) == pytest.approx(found["validation_accuracy"], rel=1e-4), error


@pytest.mark.once
def test_bart_restores_the_text_that_it_is_given(folder):
    rows = "objective.rows=padded"
    trained(folder, "bart", "objective.type=bart", "model.positions=learned", rows)
    assert set(asked(folder, "bart")) == {"c"}


@pytest.mark.once
def test_a_mixture_of_denoisers_is_learned(folder):
    trained(folder, "ul2", "objective.type=ul2", "objective.rows=packed")


@pytest.mark.once
def test_an_encoder_decoder_goes_on_from_a_prefix(folder):
    trained(folder, "adapted", "objective.type=prefix_lm", "objective.rows=packed")
    assert set(asked(folder, "adapted")) == {"c"}


@pytest.mark.parametrize("type", ["span_corruption", "ul2", "prefix_lm"])
def test_a_decoder_learns_what_comes_after_the_source(folder, type):
    name, more = f"decoder_{type}", ["objective.rows=packed", f"objective.type={type}"]
    if type == "prefix_lm":  # without sentinels, so that a letter is a token here too
        more.append("tokenizer.vocab=257")
    trained(folder, name, *more, "model.prefix=true", structure="decoder")
    if type == "prefix_lm":
        assert set(asked(folder, name)) == {"c"}


@pytest.mark.once
def test_stopped_and_resumed_on_other_devices_is_never_stopped(folder):
    more = ["objective.type=ul2", "microbatches=2", "batch=16"]
    more += ["optimizer.schedule.type=constant", "steps=6"]
    processes.run(*words(folder, "whole", *more))
    processes.run(*words(folder, "parts", *more, "steps=3"), devices=2)
    code, _, error = processes.run(*words(folder, "parts", *more), devices=8)
    assert code == errors.DONE, error
    losses = [last(folder, name)["validation_loss"] for name in ("whole", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.once
@pytest.mark.parametrize(
    "more",
    [
        ["objective.type=span_corruption", "lora.rank=2", "frozen_dtype=nf4"],
        ["objective.type=bart", "trainable=[embeddings, norms]"],
        ["objective.type=ul2", "data.train=[{path: A, weight: 1}, {path: A, weight: 3}]"],
        ["objective.type=span_corruption", "data.replay={path: A, weight: 0.5}"],
    ],
    ids=["adapters", "frozen", "mixture", "replay"],
)
def test_a_base_is_tuned_further(folder, request, more):
    base, name = folder / "t5", request.node.callspec.id
    if not base.exists():
        processes.run(*words(folder, "t5", *T5))
    given = [*words(folder, name), f"init={base}", "steps=3", *more]
    tuned = [w for w in given if not w.startswith(("model.", "tokenizer"))]
    code, _, error = processes.run(
        *(w.replace("path: A", f"path: {folder}/a.jsonl") for w in tuned)
    )
    assert code == errors.DONE, error
    assert last(folder, name)["validation_loss"] < 6


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["model.structure=encoder"], "objective.type: span_corruption does not train a model of"),
        (["length=2"], "length: 2 leaves no room for two tokens of text and what goes around"),
        (
            ["length=1024", "objective.span=1"],
            "tokenizer: has 100 sentinels (<extra_id_0>, ...) where a text needs 153; use one with",
        ),
    ],
)
def test_what_cannot_be_is_one_line(folder, more, line):
    given = words(folder, "wrong", "objective.type=span_corruption", *more)
    code, _, error = processes.run(*given)
    assert code == errors.CONFIG and line in error.splitlines()[-1], error
    assert "Traceback" not in error
