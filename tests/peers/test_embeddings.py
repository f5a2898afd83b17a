"""Embeddings and their loss, by the formulas of sentence-transformers with torch."""

import json
from functools import partial

import hubs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.models.embedding import embedding
from jaxlm.objectives.contrastive import contrastive
from jaxlm.text.train import train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

TEXTS = ["def main(argument):", "return", "for word in argument", "if word:\n    return word" * 3]
TOKENIZER = train("bpe", 300, [hubs.TEXT], "encoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random BERT with a tokenizer that frames texts as BERT's does."""
    return hubs.write(tmp_path_factory.mktemp("bert"), "bert", tokenizer=TOKENIZER)


@pytest.fixture(scope="module")
def states(folder):
    """(its hidden states, the mask) of TEXTS in transformers, padded."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    given = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    net = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return net(**given).last_hidden_state, given["attention_mask"]


@pytest.mark.parametrize("pool", [None, "first"])
def test_texts_are_embedded_as_sentence_transformers_does(folder, states, pool):
    x, mask = states
    if pool == "first":
        sentences = x[:, 0]
    else:  # sentence_transformers.models.Pooling: mean over the mask
        share = mask[..., None].float()
        sentences = (x * share).sum(1) / share.sum(1).clamp(min=1e-9)
    want = torch.nn.functional.normalize(sentences, p=2, dim=1).numpy()
    np.testing.assert_allclose(jaxlm.load(folder).embed(TEXTS, pool), want, atol=2e-5)


def test_what_a_folder_says_of_its_pooling_is_followed(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    said = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True}
    (tmp_path / "1_Pooling").mkdir()
    where = tmp_path / "1_Pooling" / "config.json"
    where.write_text(json.dumps(said | {"pooling_mode_mean_tokens": False}))
    found = jaxlm.load(tmp_path).embed(TEXTS)
    np.testing.assert_array_equal(found, jaxlm.load(folder).embed(TEXTS, "first"))
    where.write_text(json.dumps(said | {"pooling_mode_max_tokens": True}))
    with pytest.raises(jaxlm.core.errors.DataError, match="asks for pooling_mode_cls_token and"):
        jaxlm.load(tmp_path)


def test_the_loss_is_multiple_negatives_ranking():
    """Loss and gradient of the cross-entropy of scaled cosines, each row's own being its label."""
    x = np.random.default_rng(0).normal(size=(6, 9, 8)).astype(np.float32)
    segments = np.repeat([[1, 2, 3]], 3, axis=1).repeat(6, axis=0).astype(np.int32)
    texts = np.arange(1, 37, dtype=np.int32).reshape(6, 6)
    batch = {"segments": jnp.asarray(segments), "texts": jnp.asarray(texts)}
    made = contrastive(embed=partial(embedding, how="mean"), temperature=0.05, symmetric=False)
    assert made.whole is not None
    compare = made.whole.compare

    def loss(x):
        return compare(embedding(x, batch["segments"], 3, "mean"), batch).loss.mean()

    ours, slope = jax.value_and_grad(loss)(jnp.asarray(x))
    theirs = torch.tensor(x, requires_grad=True)
    parts = [theirs[:, list(np.flatnonzero(segments[0] == k))].mean(1) for k in (1, 2, 3)]
    anchors, *others = (torch.nn.functional.normalize(part, dim=1) for part in parts)
    scores = anchors @ torch.cat(others).T / 0.05
    want = torch.nn.functional.cross_entropy(scores, torch.arange(6))
    want.backward()
    assert float(ours) == pytest.approx(want.item(), rel=1e-5)
    assert theirs.grad is not None
    np.testing.assert_allclose(slope, theirs.grad.numpy(), atol=1e-5)
