"""Runs of seq2seq: learned, asked, resumed, adapted, split, and refused in one line."""

import json

import jax.numpy as jnp
import networks
import numpy as np
import processes
import pytest

import jaxlm
from jaxlm.checkpoint import inspect
from jaxlm.config.objectives import Seq2seq
from jaxlm.config.schema import Examples, Source
from jaxlm.core import errors, tree
from jaxlm.data import paired
from jaxlm.models.transformer import make_forward
from jaxlm.objectives.lm import language_model
from jaxlm.text.train import train

COLORS = {"red": "rot", "blue": "azul", "green": "vert", "black": "nero", "white": "bily"}
COLORS |= {"pink": "roze", "gold": "dorado", "gray": "sivi"}
THINGS = {"cat": "neko", "dog": "hund", "fox": "renard", "bird": "ave", "fish": "ryba"}
THINGS |= {"horse": "cavallo", "cow": "lehma", "pig": "varken"}
"""What they are in some other language, which has the color behind the thing."""
KINDS = {"T5": "model.positions=relative", "BART": "model.positions=learned"}

SILENT = "samples.prompts=null", "samples.match=null"
"""Asks nothing."""


def written(folder):
    """400 phrases of two words with what they are in the other language."""
    path = folder / "pairs.jsonl"
    if not path.exists():
        rng, lines = np.random.default_rng(0), []
        for color, thing in zip(
            rng.choice([*COLORS], 400), rng.choice([*THINGS], 400), strict=True
        ):
            pair = {"source": f"{color} {thing}", "target": f"{THINGS[thing]} {COLORS[color]}"}
            lines.append(json.dumps(pair) + "\n")
        path.write_text("".join(lines))
        own = train("bpe", 600, path.read_text().splitlines(), "encoder")
        own.save(folder / "roberta")
    return path


def words(folder, name, *more, kind="T5"):
    path = written(folder)
    fixed = f"objective.type=seq2seq model.structure=encoder-decoder model.dropout=0 {KINDS[kind]} "
    fixed += f"data.train={path} data.validation=0.15 run_dir={folder}/{name} batch=32 length=16 "
    fixed += "optimizer.learning_rate=3e-3 optimizer.schedule.type=constant steps=130 "
    fixed += "evaluate.every=65 checkpoint.every=65 tokenizer.vocab=600 log.every=10 "
    fixed += "samples.prompts=validation samples.match=exact samples.tokens=8"
    if kind == "BART":
        fixed += f" tokenizer.path={folder}/roberta model.encoder.start=2"
    return ["train", *processes.TINY, *fixed.split(), *more]


def last(folder, name):
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").open()][-1]


def done(*given, devices=1):
    code, out, error = processes.run(*given, devices=devices)
    assert code == errors.DONE, error
    return out + error


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a T5 that was never stopped."""
    folder = tmp_path_factory.mktemp("seq2seq")
    more = "samples.metrics=[rouge_l, chrf, exact]", "samples.beams=2", "samples.length_penalty=0.5"
    done(*words(folder, "T5", *more))
    return folder


def test_a_t5_learns_to_translate_and_says_how_near_it_comes(folder):
    found = last(folder, "T5")
    assert found["validation_loss"] < 0.3 and found["validation_accuracy"] > 0.9
    assert found["samples_match"] == found["samples_exact"] > 0.9
    assert 0.9 < found["samples_rouge_l"] <= 1 and 90 < found["samples_chrf"] <= 100
    (audit,) = json.loads((folder / "T5" / "audit.json").read_text())
    assert audit["kept"] + audit["held"] == audit["examples"] == 400 > audit["rows"]
    page = (folder / "T5" / "report.html").read_text()
    assert "ROUGE-L" in page and "chrF2" in page


@pytest.mark.once
def test_it_answers_what_it_was_never_told(folder):
    model = jaxlm.load(folder / "T5")
    asked = [f"{color} {thing}" for color in COLORS for thing in THINGS]
    right = [f"{THINGS[thing]} {COLORS[color]}" for color in COLORS for thing in THINGS]
    for beams in (1, 3):
        said = model.generate(asked, max_tokens=8, beams=beams)
        assert np.mean([one.strip() == two for one, two in zip(said, right, strict=True)]) > 0.9
    given = "--prompt", "gold pig", "--max-tokens", "8", "--platform", "cpu"
    out = done("generate", str(folder / "T5"), *given)
    assert "varken dorado" in out


@pytest.mark.once
def test_a_bart_learns_too(folder):
    done(*words(folder, "BART", "steps=160", kind="BART"))
    assert last(folder, "BART")["samples_match"] > 0.9


def test_stopped_and_continued_is_never_stopped(folder):
    for steps in (65, 130):
        done(*words(folder, "parts", *SILENT, f"steps={steps}"))
    found = [inspect.digest(f"{folder}/{name}/checkpoints") for name in ("T5", "parts")]
    assert found[0] == found[1] and found[0][0] == 130


@pytest.mark.once
def test_eight_devices_are_one(folder):
    more = "samples.match=exact", "steps=6", "samples.beams=2", "samples.tokens=4"
    for devices in (1, 8):
        done(*words(folder, f"on{devices}", *more), devices=devices)
    one, eight = (last(folder, f"on{devices}") for devices in (1, 8))
    assert one["validation_loss"] == pytest.approx(eight["validation_loss"], rel=1e-5)
    assert one["samples_match"] == eight["samples_match"]


@pytest.mark.once
def test_adapters_in_both_stacks_learn_and_the_base_stays(folder):
    kept = [w for w in words(folder, "lora") if not w.startswith(("model.", "tokenizer."))]
    more = f"init={folder}/T5 lora.rank=4 steps=5 optimizer.learning_rate=1e-3"
    done(*kept, *more.split(), *SILENT, "frozen_dtype=bfloat16")
    tuned, base = (tree.flatten(jaxlm.load(folder / name).params) for name in ("lora", "T5"))
    names = {name.rpartition("/")[0] for name in tuned if name.endswith("lora_b")}
    assert len(names) == 12 and {name.split("/")[0] for name in names} == {"encoder", "decoder"}
    assert sum("/cross/" in name for name in names) == 4
    assert all(np.any(tuned[f"{name}/lora_b"]) for name in names)
    for name, leaf in base.items():
        assert np.array_equal(tuned[name], jnp.asarray(leaf).astype(tuned[name].dtype)), name
    assert last(folder, "lora")["validation_accuracy"] > 0.9


@pytest.mark.once
def test_a_frozen_encoder_stays(folder):
    kept = [w for w in words(folder, "head") if not w.startswith(("model.", "tokenizer."))]
    done(*kept, f"init={folder}/T5", "trainable=[^decoder/]", "steps=3", *SILENT)
    tuned, base = (tree.flatten(jaxlm.load(folder / name).params) for name in ("head", "T5"))
    same = {name for name, leaf in base.items() if np.array_equal(leaf, tuned[name])}
    assert any(name.startswith("encoder/") for name in same)
    assert not any(name.startswith("decoder/") for name in same)


@pytest.mark.parametrize("positions", ["relative", "learned"])
def test_packed_is_apart(folder, positions):
    """Loss and weight of packed rows are those of the pairs one by one."""
    own = train("bpe", 380, [written(folder).read_text()], "encoder-decoder")
    model = networks.spec(
        structure="encoder-decoder", positions=positions, vocab=own.vocab, max_length=32
    )
    forward = make_forward(model, networks.layout(), jnp.float32)
    params, objective = networks.params(model), language_model(z_loss=1e-3, shards=1)
    found = []
    for packing in (True, False):
        how = Seq2seq(target_length=24), Examples(packing=packing)
        opener = paired.opener(own, *how, length=32, start=0)
        rows = opener(Source(path=str(folder / "pairs.jsonl")), 0.9).train
        batch = rows.take(np.arange(rows.count), np.arange(rows.count))
        assert packing == (batch["segments"].max() > 1)
        sums = objective.loss(forward, params, batch, None)
        total = sums.loss, sums.weight, sums.auxiliary["z_loss"], *sums.extra.values()
        found.append([float(each) for each in total])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize(
    ("more", "code", "line"),
    [
        (["model.structure=decoder"], 2, "seq2seq does not train a model of structure=decoder but"),
        (["objective.target=x"], 2, "target is there and source is not"),
        (["objective.target_length=99"], 2, "objective.target_length: 99 is more than length=16"),
        (["length=2", "samples.tokens=1"], 3, "pairs.jsonl:1: source: "),
        (["data.replay={path: stdlib, weight: 0.1}"], 2, "data.replay replays documents, which"),
        (["model.encoder.start=700"], 2, "model.encoder.start: id 700 is outside the vocabulary"),
        (["samples.tokens=17"], 3, "or samples.tokens=17 exceed the model's 16 positions"),
        (["samples.beams=601"], 2, "samples.beams: 601 is more than the"),
        (["data.validation=null"], 2, "validation is of objective.type=sft or seq2seq with"),
        (["samples.metrics=bleu"], 2, "samples.metrics must be 'exact', 'rouge_l' or 'chrf'"),
        (["examples.template=plain"], 2, "examples.template is of objective.type=sft; leave it"),
    ],
)
def test_what_cannot_be_is_one_line(folder, more, code, line):
    found, _, error = processes.run(*words(folder, "wrong", *more))
    assert found == code and line in error.splitlines()[-1], error
    assert "Traceback" not in error
