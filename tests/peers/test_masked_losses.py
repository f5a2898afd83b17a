"""Losses of masked language models on the same masked batch as in transformers."""

import hubs
import numpy as np
import pytest

import jaxlm
from jaxlm.config.objectives import Mlm
from jaxlm.data.cache import Tokens
from jaxlm.data.masked import masked
from jaxlm.objectives.lm import language_model
from jaxlm.text.train import train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

OWN = train("bpe", 300, [hubs.TEXT], "encoder")


def stream():
    documents = [OWN.encode(hubs.TEXT[i : i + 40 + 9 * i]) for i in range(12)]
    ids = np.array([i for document in documents for i in document], np.uint16)
    return Tokens(ids, np.cumsum([0, *map(len, documents)]), "here", "0")


@pytest.mark.parametrize("rows", ["full", "padded", "pairs"])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_the_loss_is_that_of_transformers(tmp_path, family, rows):
    pad = {"pad_token_id": OWN.pad}
    model = jaxlm.load(hubs.write(tmp_path / "m", family, tokenizer=OWN, **pad))
    types = bool(model.spec.embedding.types)
    made = masked(stream(), OWN, Mlm(rows=rows), length=24, types=types, seed=1)
    every = np.arange(made.count)
    batch = made.take(every, every)
    sums = language_model(z_loss=0.0, shards=1).loss(model._forward, model.params, batch, None)

    net = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "m").eval()
    labels = np.full(batch["tokens"].shape, -100)
    row, place = np.nonzero(batch["weights"])
    labels[row, batch["at"][row, place]] = batch["targets"][row, place]
    given = {
        "input_ids": torch.tensor(batch["tokens"]).long(),
        "attention_mask": torch.tensor(batch["segments"]).long(),
        "labels": torch.tensor(labels),
    }
    if types:
        given["token_type_ids"] = torch.tensor(batch["types"]).long()
    with torch.no_grad():
        theirs = net(**given).loss.item()
    assert float(sums.loss / sums.weight) == pytest.approx(theirs, rel=1e-5)
