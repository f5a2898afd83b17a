"""Rows of sources and targets: all of the text, framed and packed, corrupted anew in each pass."""

from collections import Counter

import jax
import networks
import numpy as np
import pytest

from jaxlm.config.objectives import Bart, Denoiser, Modes, PrefixLm, SpanCorruption, Ul2
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.data import corrupted as rows_of
from jaxlm.data import pipeline
from jaxlm.data.cache import Tokens, tokenized
from jaxlm.text import train
from jaxlm.training.corruption import corruption

TEXTS = [f"{i} the quick brown fox jumps. over {'the lazy dog! ' * (i % 4)}" for i in range(60)]
LENGTH, START = 48, 7
OBJECTIVES = {
    "span_corruption": SpanCorruption(),
    "bart": Bart(mask=0.1, delete=0.1, rotate=0.5),
    "ul2": Ul2(modes=Modes(R="<extra_id_97>", S="<extra_id_98>", X="<extra_id_99>")),
    "prefix_lm": PrefixLm(),
}
CASES = [(name, START) for name in OBJECTIVES] + [
    (name, None) for name in OBJECTIVES if name != "bart"
]
"""Every objective with what targets begin with, None being in a decoder."""


@pytest.fixture(scope="module", params=["bpe", "sentencepiece"])
def own(request):
    return train.train(request.param, 480, TEXTS * 9, "encoder-decoder")


@pytest.fixture
def stream(own, jsonl, tmp_path):
    return tokenized(jsonl("a", TEXTS), own, folder=tmp_path / "cache").train


def made(stream, own, chosen, *, start=START, length=LENGTH, shape="full"):
    how = {"length": length, "shape": shape, "start": start, "seed": 3}
    return rows_of.corrupted(stream, own, corruption(chosen, own), **how)


def whole(rows, drawn=0):
    every = np.arange(rows.count)
    return rows.take(every, every + drawn)


def sides(batch, row, segment, frame):
    """Source and target ids of a segment, without what is around them."""
    inside = batch["segments"][row] == segment
    targets = batch["targets"][row][inside].tolist()
    if "source" in batch:
        source = batch["source"][row][batch["source_segments"][row] == segment].tolist()
        around = len(frame.before), -len(frame.after)
        assert frame.around(source[slice(*around)]) == source
        assert frame.around(targets[slice(*around)]) == targets
        return source[slice(*around)], targets[slice(*around)]
    learned = batch["weights"][row][inside] > 0
    prefix = batch["prefix"][row][inside] > 0
    assert targets[-1] == frame.after[-1]
    return batch["tokens"][row][inside][prefix].tolist(), np.array(targets)[learned][:-1].tolist()


def restored(name, source, target, own):
    """The text of a pair."""
    if name == "bart":
        return target
    if name == "prefix_lm":
        return source + target
    runs, marks = {}, set(own.sentinels[:97])
    for each in target:
        if each in marks:
            runs[each] = []
        else:
            runs[next(reversed(runs))].append(each)
    inside = source[1:] if name == "ul2" else source
    return [token for each in inside for token in (runs.get(each, []) if each in marks else [each])]


@pytest.mark.parametrize("shape", ["full", "packed", "padded"])
@pytest.mark.parametrize(("name", "start"), CASES)
def test_a_pass_is_all_of_the_text(own, stream, name, start, shape):
    rows = made(stream, own, OBJECTIVES[name], start=start, shape=shape)
    batch, seen = whole(rows), Counter()
    for row in range(rows.count):
        pieces = rows.pieces.row(row)
        assert batch["segments"][row].max() == len(pieces)
        for segment, piece in enumerate(pieces, 1):
            source, target = sides(batch, row, segment, own.frame)
            assert restored(name, source, target, own) == piece.tolist() or piece.size == 1
            seen.update(piece.tolist())
    special = [*own.names.values()]
    every = Counter(stream.ids.tolist())
    assert {i: n for i, n in seen.items() if i not in special} == {
        i: n for i, n in every.items() if i not in special
    }
    if shape == "full" and name != "bart":  # as long as fits, but for the last
        longest = rows.corruption.sizes(np.array([rows.pieces.longest + 1]))
        assert not rows.sides.fits(longest).any()
        assert all(rows.pieces.row(row)[0].size >= rows.pieces.longest - 1 for row in range(3))


@pytest.mark.parametrize(("name", "start"), CASES)
def test_segments_have_their_own_positions_and_weights(own, stream, name, start):
    batch = whole(made(stream, own, OBJECTIVES[name], start=start, shape="packed"))
    assert (batch["weights"][batch["segments"] == 0] == 0).all()
    assert batch["segments"].max() > 1 or name == "ul2"
    for row, segments in enumerate(batch["segments"]):
        for segment in range(1, segments.max() + 1):
            here = np.flatnonzero(segments == segment)
            assert (batch["positions"][row, here] == np.arange(here.size)).all()
            tokens, targets = batch["tokens"][row, here], batch["targets"][row, here]
            assert (tokens[1:] == targets[:-1]).all()
            if start is not None:
                assert tokens[0] == start and (batch["weights"][row, here] == 1).all()
                continue
            prefix, weights = batch["prefix"][row, here], batch["weights"][row, here]
            assert prefix[0] and (np.diff(prefix) <= 0).all()
            assert (weights == np.append(prefix[1:] == 0, True)).all()


def reference_lengths(source, rate, mean):
    """random_spans_helper of Raffel et al. 2020's code, written out: tokens, target."""

    def both(tokens):
        noise = round(tokens * rate)
        spans = round(noise / mean)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = source - 1
    while both(tokens + 1)[0] <= source:
        tokens += 1
    target = both(tokens)[1]
    equal = rate == 0.5 and target > source
    return tokens - equal, target - equal


def test_the_shares_of_the_paper_fill_the_source(own):
    """568 tokens of text for a source of 512, a target of 114."""
    text = np.setdiff1d(np.arange(own.vocab), [*own.names.values()])
    ids = np.random.default_rng(0).choice(text, 568 * 6 + 1)
    stream = Tokens(ids.astype(np.uint16), np.array([0, ids.size]), "here", "0")
    rows = made(stream, own, SpanCorruption(), length=512)
    batch = whole(rows)
    assert batch["source"].shape == (6, 512) and batch["targets"].shape == (6, 114)
    assert batch["segments"].all() and batch["source_segments"].all()
    marks = np.isin(batch["targets"], own.sentinels).sum(1)
    assert (marks == 28).all()  # of 85 tokens: spans of three
    for length, rate, mean in ((512, 0.15, 3), (256, 0.5, 3), (512, 0.5, 8), (300, 0.3, 4.5)):
        rows = made(stream, own, SpanCorruption(rate=rate, span=mean), length=length)
        expected = reference_lengths(length, rate, mean)
        assert (rows.pieces.longest, rows.sides.target) == expected


def test_each_pass_has_other_noise_and_no_seed_the_same(own, stream):
    for name, start in CASES:
        rows = made(stream, own, OBJECTIVES[name], start=start)
        one, again, later = whole(rows), whole(rows), whole(rows, drawn=rows.count)
        assert all((one[n] == again[n]).all() for n in one)
        assert any((one[n] != later[n]).any() for n in one)
    data = pipeline.Dataset((rows,), None, LENGTH, own.pad, 5)
    whole_batch = data.batch(3, 8)
    parts = [data.batch(3, 8, slice(i, i + 4)) for i in (0, 4)]
    for name, array in whole_batch.items():
        assert (array == np.concatenate([part[name] for part in parts])).all()
    other = made(stream, own, SpanCorruption(rate=0.2))
    assert other.digest != made(stream, own, SpanCorruption()).digest


@pytest.mark.parametrize(("name", "start"), CASES)
def test_padded_rows_are_as_wide_as_the_longest_of_the_batch(own, stream, name, start):
    rows = made(stream, own, OBJECTIVES[name], start=start, shape="padded", length=240)
    data = pipeline.Dataset((rows,), None, 240, own.pad, 0)
    batch = data.batch(0, 8)
    full = rows.take(data._locate(np.arange(8))[1], np.arange(8))
    for each, array in batch.items():
        assert array.shape[1] < full[each].shape[1]
        assert (full[each][:, : array.shape[1]] == array).all()
    assert full["weights"].sum() == batch["weights"].sum()


def alone(batch):
    """Every segment of a batch in a row of its own, and the batch with as many rows."""
    found = []
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            one = {name: np.zeros_like(array[:1]) for name, array in batch.items()}
            for name, array in batch.items():
                kind = "source_segments" if name.startswith("source") else "segments"
                values = array[row][batch[kind][row] == segment]
                one[name][0, : values.size] = 1 if name == kind else values
            found.append(one)
    blank = {name: np.zeros((len(found) - len(x), x.shape[1])) for name, x in batch.items()}
    filled = {name: np.append(x, blank[name].astype(x.dtype), 0) for name, x in batch.items()}
    return {name: np.concatenate([one[name] for one in found]) for name in batch}, filled


@pytest.mark.parametrize("own", ["bpe"], indirect=True)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("span_corruption", networks.PAIRS["t5"]),
        ("bart", networks.PAIRS["bart"]),
        ("prefix_lm", {"prefix": True}),
    ],
)
def test_packed_pairs_do_not_see_each_other(own, stream, name, shape):
    spec = networks.spec(**shape).model_copy(update={"vocab": own.vocab, "max_length": LENGTH})
    start = spec.encoder.start if spec.structure == "encoder-decoder" else None
    batch = whole(made(stream, own, OBJECTIVES[name], start=start, shape="packed"))
    batch = {each: array[:6] for each, array in batch.items()}
    assert batch["segments"].max() > 1
    loss, params = jax.jit(networks.loss(spec)), networks.params(spec)
    separate, packed = (float(loss(params, rows)) for rows in alone(batch))
    assert packed == pytest.approx(separate, rel=1e-5)


def test_what_cannot_be_made_is_said(own, stream, tokenizer):
    def wrong(chosen, its=own, **how):
        with pytest.raises((ConfigError, DataError)) as found:
            whole(made(stream, its, chosen, **how))
        return str(found.value)

    sentinels = "tokenizer: has 0 sentinels (<extra_id_0>, ...) where a text needs"
    assert wrong(SpanCorruption(), tokenizer).startswith(sentinels)
    assert wrong(Ul2(), tokenizer).startswith(sentinels)
    few = "tokenizer: has 100 sentinels (<extra_id_0>, ...) where a text needs 256; use one with"
    assert wrong(SpanCorruption(rate=0.5), length=1024).startswith(few)
    assert "no mask token, which objective.type=bart needs" in wrong(Bart(), tokenizer)
    room = "length: 2 leaves no room for two tokens of text and what goes around them; use 3 or"
    assert wrong(SpanCorruption(), length=2).startswith(room)
    made(stream, own, SpanCorruption(), length=3)
    missing = Ul2(modes=Modes(R="[R]", S="[R]", X="[R]"))
    assert "objective.modes.R: [R] is no special token" in wrong(missing)
    assert "objective.modes.S: is missing" in wrong(Ul2(modes=Modes(R="<mask>", X="<pad>")))
    only = Ul2(denoisers=(Denoiser(mode="S", rate=0.3),), modes=Modes(S="<extra_id_0>"))
    assert "has 0 sentinels" in wrong(only)
