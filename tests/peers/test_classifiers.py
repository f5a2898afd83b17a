"""Losses of labels against transformers: the same network, the same batch."""

import json
from pathlib import Path

import jax.numpy as jnp
import networks
import numpy as np
import pytest
from peers.test_families import saved

from jaxlm.data.classified import Answered, Classified, Reads
from jaxlm.hub.load import load_params, open_folder
from jaxlm.models.balance import Aux
from jaxlm.models.transformer import make_forward
from jaxlm.objectives import classify

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

CONFIGS = json.loads((Path(__file__).parents[1] / "families" / "configs.json").read_text())
NAMES = ("a", "b", "c")
SIZES = (9, 5, 12, 7)
"""Tokens of the texts."""
BASES = {
    "BertForSequenceClassification": "bert",
    "BertForTokenClassification": "bert",
    "BartForSequenceClassification": "bart",
    "LlamaForSequenceClassification": "llama",
}
TYPES = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
    "tokens": None,
}


def values_of(name, kind):
    """A configuration with a head of three labels."""
    base = {k: v for k, v in CONFIGS[BASES[name]].items() if k not in ("architectures", "id2label")}
    ids = {str(i): name for i, name in enumerate(NAMES)}
    own = {"id2label": ids, "label2id": {name: int(i) for i, name in ids.items()}}
    more = {"problem_type": TYPES[kind]} if TYPES[kind] else {}
    return {**base, "architectures": [name], "pad_token_id": 1, "eos_token_id": 2, **own, **more}


def texts_of(kind):
    """Random texts that end with the end token, with what is told of each."""
    rng = np.random.default_rng(3)
    texts = []
    for size in SIZES:
        answer = {
            "single": rng.integers(0, 3, 1).astype(np.int32),
            "multi": rng.integers(0, 2, 3).astype(np.float32),
            "regression": rng.normal(size=3).astype(np.float32),
            "tokens": rng.integers(-1, 3, size).astype(np.int32),
        }[kind]
        ids = np.append(rng.integers(3, 97, size - 1), 2).astype(np.int32)
        types = (np.arange(size) > size // 2).astype(np.int32)
        texts.append(Answered(ids, types, answer))
    return texts


def theirs(net, texts, kind, typed):
    """The loss of transformers on the texts, padded on the right."""
    shape = len(texts), max(SIZES)
    ids, mask, types = np.full(shape, 1), np.zeros(shape, int), np.zeros(shape, int)
    labels = np.full(shape, -100)
    for row, text in enumerate(texts):
        size = text.ids.size
        ids[row, :size], mask[row, :size], types[row, :size] = text.ids, 1, text.types
        if kind == "tokens":
            labels[row, :size] = np.where(text.answer < 0, -100, text.answer)
    if kind != "tokens":
        labels = np.stack([text.answer for text in texts])
        labels = labels.astype(np.int64) if kind == "single" else labels
    given = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    given |= {"token_type_ids": types} if typed else {}
    with torch.no_grad():
        return net(**{name: torch.tensor(array) for name, array in given.items()}).loss.item()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BertForSequenceClassification", "single"),
        ("BertForSequenceClassification", "multi"),
        ("BertForSequenceClassification", "regression"),
        ("BertForTokenClassification", "tokens"),
        ("BartForSequenceClassification", "single"),
        ("LlamaForSequenceClassification", "single"),
    ],
)
def test_losses_are_those_of_transformers(name, kind, tmp_path):
    """Of texts that share rows here and have one each there."""
    values = values_of(name, kind)
    net = saved(values, tmp_path)
    folder, layout = open_folder(tmp_path), networks.layout()
    spec = folder.spec
    params, forward = load_params(folder, layout), make_forward(spec, layout, jnp.float32)
    several = 3 if kind in ("multi", "regression") else 1
    start = spec.encoder.start if spec.structure == "encoder-decoder" else None
    texts = texts_of(kind)
    reads = Reads(spec.embedding.types > 1, start)
    plan = ((0, 1), (2, 3))
    rows = Classified(tuple(texts), plan, 24, 1, kind, several, reads)
    batch = {k: jnp.asarray(v) for k, v in rows.take(np.arange(2), np.arange(2)).items()}
    objective = {
        "single": classify.single(NAMES),
        "multi": classify.multi(NAMES),
        "regression": classify.regression(),
        "tokens": classify.single(NAMES, words=True),
    }[kind]
    sums = objective.loss(forward, params, batch, None)
    want = theirs(net, texts, kind, spec.embedding.types > 1)
    assert float(sums.loss / sums.weight) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_and_smoothing_are_those_of_torch(smoothing):
    class Given:
        hidden = staticmethod(lambda params, batch, keys: (jnp.asarray(scores), Aux({}, {})))
        pooled = staticmethod(lambda x, batch, count: x)
        head = staticmethod(lambda params: params)
        logits = staticmethod(lambda head, x: x)

    rng = np.random.default_rng(5)
    scores = rng.normal(size=(20, 1, 3)).astype(np.float32) * 3
    true, weights = rng.integers(0, 3, (20, 1)), (0.3, 1.0, 2.5)
    objective = classify.single(NAMES, smoothing=smoothing, class_weights=weights)
    ones = jnp.ones((20, 1))
    batch = {"targets": jnp.asarray(true), "weights": ones, "segments": ones.astype(jnp.int32)}
    sums = objective.loss(Given, {}, batch, None)
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights), label_smoothing=smoothing)
    want = loss(torch.tensor(scores[:, 0]), torch.tensor(true[:, 0])).item()
    assert float(sums.loss / sums.weight) == pytest.approx(want, rel=1e-5)
