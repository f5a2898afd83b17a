"""Losses of labels: what they are, the same packed and alone, and every score by its definition."""

import itertools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.data.classified import Answered, Classified, Reads
from jaxlm.models.balance import Aux
from jaxlm.models.transformer import make_forward
from jaxlm.objectives import classify, counts, entities

NAMES = ("a", "b", "c")
TAGS = ("B-P", "I-P", "B-Q", "I-Q", "O")
SPECS = {
    "encoder": (networks.ENCODERS["bert"], "first"),
    "decoder": (networks.SHAPES["llama"], "last"),
    "mean": (networks.ENCODERS["modernbert"], "mean"),
    "bart": (networks.PAIRS["bart"], "last"),
}
OBJECTIVES = {
    "single": classify.single(NAMES, smoothing=0.1, class_weights=(0.5, 1.0, 3.0)),
    "multi": classify.multi(NAMES),
    "regression": classify.regression(),
    "tokens": classify.single(TAGS, words=True),
}


def spec_of(name, kind):
    changes, pool = SPECS[name]
    labels = len(TAGS if kind == "tokens" else NAMES)
    head = {"labels": labels, "pool": "none" if kind == "tokens" else pool, "bias": True}
    return networks.spec(**changes | {"head": head, "layers": 1, "remat": "none"})


def rows_of(spec, kind, plan):
    """Texts of random ids and labels, so many in each row."""
    rng = np.random.default_rng(0)
    texts = []
    for size in (3, 5, 8, 2, 6, 4):
        answer = {
            "single": rng.integers(0, 3, 1),
            "multi": rng.integers(0, 2, 3),
            "regression": rng.normal(size=3),
            "tokens": rng.integers(-1, len(TAGS), size),
        }[kind]
        ids, types = rng.integers(0, networks.VOCAB, size), rng.integers(0, 2, size)
        answer = answer.astype(np.float32 if kind in ("multi", "regression") else np.int32)
        texts.append(Answered(ids.astype(np.int32), types.astype(np.int32), answer))
    several = 3 if kind in ("multi", "regression") else 1
    start = spec.encoder.start if spec.structure == "encoder-decoder" else None
    reads = Reads(spec.embedding.types > 1, start)
    rows = Classified(tuple(texts), plan, networks.LENGTH, 0, kind, several, reads)
    every = np.arange(rows.count)
    return rows.take(every, every)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("encoder", kind) for kind in OBJECTIVES),
        ("decoder", "single"),
        ("mean", "single"),
        ("bart", "multi"),
    ],
)
def test_packed_is_not_packed(name, kind):
    """Losses, gradients and all that is counted."""
    spec = spec_of(name, kind)
    forward, objective = make_forward(spec, networks.layout(), jnp.float32), OBJECTIVES[kind]

    def loss(params, batch):
        sums = objective.loss(forward, params, batch, None)
        return sums.loss / sums.weight, sums

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    params = networks.params(spec)
    plans = ((0, 1, 2), (3, 4, 5)), tuple((i,) for i in range(6))
    packed, alone = (run(params, rows_of(spec, kind, plan)) for plan in plans)
    np.testing.assert_allclose(packed[0][0], alone[0][0], rtol=1e-5)
    networks.assert_close(packed[1], alone[1])
    networks.assert_close(packed[0][1].extra, alone[0][1].extra)
    scores = [objective.scores(1.0, 6.0, jax.device_get(x[0][1].extra)) for x in (packed, alone)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-6)


class Given:
    """A network whose scores are given."""

    def __init__(self, scores):
        self.hidden = lambda params, batch, keys: (jnp.asarray(scores, jnp.float32), Aux({}, {}))
        self.pooled = lambda x, batch, count: x
        self.head = lambda params: params
        self.logits = lambda head, x: x


def run(objective, scores, targets, weights=None):
    """(mean loss, scores of the evaluation) of given scores [B, K, C] and targets."""
    weights = np.ones(scores.shape[:2]) if weights is None else weights
    batch = {
        "targets": jnp.asarray(targets),
        "weights": jnp.asarray(weights, jnp.float32),
        "segments": jnp.ones(scores.shape[:2], jnp.int32),
    }
    sums = objective.loss(Given(scores), {}, batch, None)
    loss, weight = float(sums.loss), float(sums.weight)
    return loss / weight, objective.scores(loss, weight, jax.device_get(sums.extra))


RNG = np.random.default_rng(1)
SCORES, WEIGHTS = RNG.normal(size=(40, 2, 3)), RNG.integers(0, 2, (40, 2))
TRUE = RNG.integers(0, 3, (40, 2))


def test_a_loss_is_weighted_and_smoothed_by_its_definition():
    logs = SCORES - np.log(np.exp(SCORES).sum(-1, keepdims=True))
    share, smooth = np.array([0.5, 1.0, 3.0]), 0.2
    total = weight = 0.0
    for at in zip(*np.nonzero(WEIGHTS), strict=True):
        target = (1 - smooth) * np.eye(3)[TRUE[at]] + smooth / 3
        total -= (target * share * logs[at]).sum()
        weight += share[TRUE[at]]
    objective = classify.single(NAMES, smoothing=smooth, class_weights=tuple(share))
    assert run(objective, SCORES, TRUE, WEIGHTS)[0] == pytest.approx(total / weight, rel=1e-5)


def test_uniform_scores_cost_the_logarithm_of_how_many_labels_there_are():
    zeros = np.zeros((4, 2, 3))
    assert run(classify.single(NAMES), zeros, TRUE[:4])[0] == pytest.approx(np.log(3), rel=1e-6)
    targets = np.zeros((4, 6), np.float32)
    assert run(classify.multi(NAMES), zeros, targets)[0] == pytest.approx(np.log(2), rel=1e-6)


def f1_of(true, found):
    """By precision and recall; None of what is neither there nor found."""
    both = (true & found).sum()
    if not (true | found).sum():
        return None
    precision, recall = both / max(found.sum(), 1), both / max(true.sum(), 1)
    return 2 * precision * recall / (precision + recall) if both else 0.0


def test_scores_of_single_labels_are_by_their_definitions():
    real = WEIGHTS > 0
    true, found = TRUE[real], SCORES.argmax(-1)[real]
    _, scores = run(classify.single(NAMES), SCORES, TRUE, WEIGHTS)
    assert scores["examples"] == real.sum()
    assert scores["accuracy"] == scores["micro_f1"] == pytest.approx((true == found).mean())
    each = [f1_of(true == c, found == c) for c in range(3)]
    assert scores["macro_f1"] == pytest.approx(np.mean(each))
    x, y = np.eye(3)[true], np.eye(3)[found]  # Gorodkin 2004, eq. 2: a correlation
    x, y = x - x.mean(0), y - y.mean(0)
    right = (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())
    assert scores["matthews"] == pytest.approx(right)
    shares = np.exp(SCORES - SCORES.max(-1, keepdims=True))
    sure = (shares / shares.sum(-1, keepdims=True)).max(-1)[real]
    gaps = 0.0
    for low in np.arange(15) / 15:
        inside = (sure > low) & (sure <= low + 1 / 15)
        if inside.any():
            gap = abs((true == found)[inside].mean() - sure[inside].mean())
            gaps += inside.mean() * gap
    assert scores["calibration_error"] == pytest.approx(gaps, rel=1e-4)


def test_matthews_of_two_labels_is_the_phi_coefficient_and_by_hand():
    table = np.array([[50, 10], [5, 35]])
    phi = (50 * 35 - 10 * 5) / np.sqrt(60 * 40 * 55 * 45)
    assert counts.of_confusion(table)["matthews"] == pytest.approx(phi)
    assert counts.of_confusion(np.array([[7, 0], [3, 0]]))["matthews"] == 0
    lone = counts.of_confusion(np.array([[5, 5, 0], [0, 10, 0], [0, 0, 0]]))
    assert lone["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)  # the third label is not there


def test_scores_of_several_labels_are_by_their_definitions():
    targets = RNG.integers(0, 2, (40, 2, 3))
    loss, scores = run(
        classify.multi(NAMES), SCORES, targets.reshape(40, 6).astype(np.float32), WEIGHTS
    )
    real = WEIGHTS > 0
    true, found, raw = targets[real] > 0, SCORES[real] > 0, SCORES[real]
    p = 1 / (1 + np.exp(-raw))
    want = -np.where(true, np.log(p), np.log(1 - p)).mean()
    assert loss == pytest.approx(want, rel=1e-5)
    assert scores["accuracy"] == pytest.approx((true == found).all(1).mean())
    assert scores["macro_f1"] == pytest.approx(
        np.mean([f1_of(true[:, c], found[:, c]) for c in range(3)])
    )
    assert scores["micro_f1"] == pytest.approx(f1_of(true.ravel(), found.ravel()))
    assert scores["examples"] == real.sum()


def test_scores_of_numbers_are_by_their_definitions():
    targets = RNG.normal(size=(40, 2, 3)) + 2
    flat = targets.reshape(40, 6).astype(np.float32)
    loss, scores = run(classify.regression(), SCORES, flat, WEIGHTS)
    real = WEIGHTS > 0
    x, y = targets[real], SCORES[real]
    assert loss == pytest.approx(((x - y) ** 2).mean(), rel=1e-5)
    assert scores["mean_absolute_error"] == pytest.approx(np.abs(x - y).mean(), rel=1e-5)
    right = np.mean([np.corrcoef(x[:, c], y[:, c])[0, 1] for c in range(3)])
    assert scores["pearson"] == pytest.approx(right, rel=1e-3)


@pytest.mark.parametrize("found", [np.full((40, 2, 1), 0.7), SCORES[..., :1] * 0 + 2000])
def test_what_does_not_vary_has_no_correlation(found):
    targets = (RNG.normal(size=(40, 2, 1)) + 2).astype(np.float32)
    _, scores = run(classify.regression(), found, targets.reshape(40, 2), WEIGHTS)
    assert np.isnan(scores["pearson"]) and scores["mean_absolute_error"] > 0


def chunks(labels):
    """The entities (type, first, last) of one text, as seqeval's get_entities finds them."""
    found, before, kind, begin = [], "O", "", 0
    for place, label in enumerate([*labels, "O"]):
        tag, its = label[0], label[2:] or "_"
        ended = before in "ES" or before + tag in ("BB", "BS", "BO", "IB", "IS", "IO")
        if ended or (before != "O" and kind != its):
            found.append((kind, begin, place - 1))
        started = tag in "BS" or before + tag in ("EE", "EI", "SE", "SI", "OE", "OI")
        if started or (tag != "O" and kind != its):
            begin = place
        before, kind = tag, its
    return found


@pytest.mark.parametrize(
    "labels", [TAGS, ("I-P", "I-Q", "O"), ("B-P", "I-P", "E-P", "S-P", "S-Q", "O")]
)
def test_entities_are_those_of_seqeval(labels):
    rng = np.random.default_rng(len(labels))
    rows, length = 12, 20
    true = rng.integers(0, len(labels), (rows, length))
    found = np.where(
        rng.uniform(size=true.shape) < 0.3, rng.integers(0, len(labels), true.shape), true
    )
    segments = np.sort(rng.integers(0, 4, (rows, length)), axis=1)[:, ::1]
    words = (rng.uniform(size=true.shape) < 0.8) & (segments > 0)
    scheme = entities.scheme(labels)
    got = entities.counted(scheme, *map(jnp.asarray, (true, found, segments, words)))["entities"]
    want = {kind: [0, 0, 0] for kind in scheme.types}
    for row, segment in itertools.product(range(rows), range(1, 4)):
        at = words[row] & (segments[row] == segment)
        sides = [chunks([labels[i] for i in side[row][at]]) for side in (found, true)]
        for column, side in enumerate((set(sides[0]) & set(sides[1]), *sides)):
            for kind, *_ in side:
                want[kind][column] += 1
    assert got.tolist() == [want[kind] for kind in scheme.types] and got.sum() > 30
    both, ours, theirs = np.sum(list(want.values()), axis=0)
    scores = counts.of_entities(got)
    assert scores["entity_precision"] == pytest.approx(both / ours)
    assert scores["entity_recall"] == pytest.approx(both / theirs)
    harmonic = 2 / (ours / both + theirs / both)
    assert scores["entity_f1"] == pytest.approx(harmonic)


def test_labels_that_are_no_entities_are_not_scored_as_such():
    assert entities.scheme(("noun", "verb")) is None
    assert entities.scheme(("B", "I", "O")) is None
    assert entities.scheme(("B-P", "I-P", "other")) is None
    assert counts.of_entities(np.zeros((2, 3))) == {
        "entity_precision": 0.0,
        "entity_recall": 0.0,
        "entity_f1": 0.0,
    }
