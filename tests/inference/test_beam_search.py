"""Beam search: one beam is greedy, scores are the model's own, what there is to find is found."""

from functools import cache
from itertools import chain, product

import hubs
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import jaxlm
from jaxlm import cli
from jaxlm.core import errors
from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.inference.beam import BeamSearch
from jaxlm.inference.generate import Generator
from jaxlm.inference.model import Model
from jaxlm.models.transformer import make_forward

PROMPTS, ENDS = [[1, 2, 3, 4, 5], [6], [7, 8, 9, 10], [11, 12]], (40, 77)
LONGROPE = {
    "rope": {"scaling": "longrope", "original_length": 8, "short": [1.1] * 4, "long": [9.0] * 4}
}
SPECS = {"llama": {}, "t5": networks.PAIRS["t5"], "longrope": LONGROPE}


@cache
def network(name, vocab=networks.VOCAB, **mesh):
    """(the model, its forward)."""
    spec = networks.spec(**SPECS[name]).model_copy(update={"vocab": vocab})
    at = Layout(make_mesh(mesh)) if mesh else networks.layout()
    model = Model(networks.params(spec, at), spec, hubs.TOKENIZER, at, jnp.float32)
    return model, make_forward(spec, at, jnp.float32)


def found(name, prompts=PROMPTS, *, vocab=networks.VOCAB, mesh=(), **how):
    model, forward = network(name, vocab, **dict(mesh))
    how = {"beams": 3, "max_tokens": 6, "ends": ENDS} | how
    return BeamSearch(forward, model.spec).beams(model.params, prompts, **how)


def sums(name, prompts, rows, vocab=networks.VOCAB):
    """The sum of log-probabilities that the model gives each row after its prompt, [N]."""
    model, _ = network(name, vocab)
    pair = model.spec.structure == "encoder-decoder"
    begun = [[model.spec.encoder.start]] * len(rows) if pair else prompts
    tokens, mask = filled([[*first, *row] for first, row in zip(begun, rows, strict=True)])
    source = dict(zip(("source", "source_mask"), filled(prompts), strict=True)) if pair else {}
    scores = model.logits(tokens, mask, **source)
    if model.spec.rope.scaling == "longrope":
        short = model.spec.rope.original_length  # up to there it turns otherwise
        first = model.logits(tokens[:, :short], mask[:, :short])
        scores = jnp.concatenate([first, scores[:, short:]], 1)
    likely = np.asarray(jax.nn.log_softmax(scores), np.float64)
    return [
        sum(likely[at, len(first) - 1 + count, token] for count, token in enumerate(row))
        for at, (first, row) in enumerate(zip(begun, rows, strict=True))
    ]


def filled(rows):
    """(rows [N, L], which of their tokens are real)."""
    longest = max(map(len, rows))
    tokens = np.array([[*row, *[0] * (longest - len(row))] for row in rows])
    return tokens, np.arange(longest) < np.array([[len(row)] for row in rows])


@pytest.mark.parametrize("name", ["longrope", "t5"])
def test_one_beam_is_greedy_to_its_first_end(name):
    model, forward = network(name)
    steps = Generator(forward, model.spec).tokens(model.params, PROMPTS, max_tokens=6)
    greedy = np.stack([*steps], 1).tolist()
    ends = greedy[0][3], greedy[1][0]
    for row, (beam,) in zip(greedy, found(name, beams=1, ends=ends), strict=True):
        ended = [at for at, token in enumerate(row) if token in ends]
        assert beam.ids == row[: ended[0] + 1 if ended else None]


@pytest.mark.parametrize("name", SPECS)
def test_a_score_is_what_the_model_gives_the_beam(name):
    """Where the rope turns otherwise on the way, too, which all rows do when the longest does."""
    prompts = PROMPTS[:1] * 4 if name == "longrope" else PROMPTS
    beams = [*chain(*found(name, prompts, length_penalty=0.5))]
    assert len({tuple(beam.ids) for beam in beams}) == (3 if name == "longrope" else 12)
    three = [prompt for prompt in prompts for _ in range(3)]
    right = sums(name, three, [beam.ids for beam in beams])
    right = [one / len(beam.ids) ** 0.5 for one, beam in zip(right, beams, strict=True)]
    np.testing.assert_allclose([beam.score for beam in beams], right, atol=2e-5)
    assert all(np.diff([beam.score for beam in beams[:3]]) < 0)


def test_all_that_two_tokens_can_say_is_found_in_order():
    vocab, end, prompt = 7, 3, [1, 2]
    every = [(end,), *product(set(range(vocab)) - {end}, range(vocab))]
    scores = np.array(sums("llama", [prompt] * len(every), every, vocab))
    scores /= np.array([len(ids) for ids in every]) ** 2
    best = np.argsort(-scores)[:vocab]
    how = {"beams": vocab, "max_tokens": 2, "ends": [end], "length_penalty": 2.0}
    (beams,) = found("llama", [prompt], vocab=vocab, **how)
    assert [tuple(beam.ids) for beam in beams] == [every[at] for at in best]
    np.testing.assert_allclose([beam.score for beam in beams], scores[best], atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_mesh_finds_the_same_beams(name):
    one, eight = (found(name, mesh=mesh) for mesh in ((), (("fsdp", 2), ("tensor", 4))))
    assert [[b.ids for b in its] for its in one] == [[b.ids for b in its] for its in eight]
    for its, theirs in zip(one, eight, strict=True):
        np.testing.assert_allclose([b.score for b in its], [b.score for b in theirs], atol=2e-5)


WRONG = [
    ({"beams": 0}, "--beams: 0 is not positive"),
    ({"beams": 98}, "--beams: 98 is more than the 97 ids"),
    ({"length_penalty": float("nan")}, "--length-penalty: nan is not in"),
    ({"ends": [97]}, "ends: id 97 is outside"),
    ({"ends": range(97)}, "ends: leave nothing of 97 ids"),
    ({"max_tokens": 0}, "--max-tokens: 0 is not positive"),
    ({"max_tokens": 99}, "--max-tokens: 5 tokens of prompt and 99 more exceed"),
]


@pytest.mark.parametrize(("how", "line"), WRONG)
def test_a_search_that_cannot_be_is_refused(how, line):
    with pytest.raises(ConfigError, match=f"^{line}"):
        found("llama", **how)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hubs.write(tmp_path_factory.mktemp("hub"), "t5")


def test_the_command_says_the_likeliest_answer(folder, capsys):
    words = ["generate", str(folder), "--prompt", "def ", "--max-tokens", "8"]
    assert cli.run([*words, "--beams", "3", "--length-penalty", "0.5"]) == errors.DONE
    model = jaxlm.load(folder)
    ids, ends = model.tokenizer.encode("def "), model.tokenizer.ends
    how = {"beams": 3, "max_tokens": 8, "length_penalty": 0.5}
    ((best, *_),) = model._beam_search.beams(model.params, [ids], ends=ends, **how)
    right = model.tokenizer.continuation([], best.ids)
    assert capsys.readouterr().out == f"{right}\n"  # a source is not continued
    assert model.generate(["def "], **how) == [right]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--beams 4 --temperature 0.7", "--beams: finds what is likeliest; leave --temperature"),
        ("--beams 4 --top-k 9", "--beams: finds what is likeliest"),
        ("--length-penalty 2", "--length-penalty: is of beam search; add --beams 4"),
        ("--beams 400", "--beams: 400 is more than the 270 ids"),
    ],
)
def test_what_beams_do_not_go_with_is_one_line(folder, words, line, capsys):
    assert cli.run(["generate", str(folder), "--prompt", "def ", *words.split()]) == errors.CONFIG
    out, error = capsys.readouterr()
    assert not out and error.startswith(f"jaxlm: error: {line}") and error.count("\n") == 1
