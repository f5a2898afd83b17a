"""Losses of encoder-decoders on the same corrupted batch as in transformers, whose own shift of the
labels gives the tokens that ours read.
"""

from functools import partial

import hubs
import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.config.objectives import Bart, PrefixLm, SpanCorruption, Ul2
from jaxlm.data.cache import Tokens
from jaxlm.data.corrupted import corrupted
from jaxlm.objectives.lm import language_model
from jaxlm.text.train import train
from jaxlm.training.corruption import corruption

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

FORMS = {"t5": "encoder-decoder", "t5 1.1": "encoder-decoder", "bart": "encoder"}
"""Whose special tokens and frame each has: T5's, and those that BART shares with RoBERTa."""
OWN = {form: train("bpe", 400, [hubs.TEXT], form) for form in set(FORMS.values())}


def stream(own):
    documents = [own.encode(hubs.TEXT[i : i + 40 + 9 * i]) for i in range(12)]
    ids = np.array([i for document in documents for i in document], np.uint16)
    return Tokens(ids, np.cumsum([0, *map(len, documents)]), "here", "0")


@pytest.mark.parametrize(
    ("family", "chosen"),
    [
        ("t5", SpanCorruption(rows="full")),
        ("t5", Ul2(rows="padded")),
        ("t5 1.1", SpanCorruption(rows="padded")),
        ("t5 1.1", PrefixLm(rows="full")),
        ("bart", Bart(rows="full", delete=0.1, rotate=0.5)),
        ("bart", Bart(rows="padded")),
    ],
)
def test_the_loss_is_that_of_transformers(tmp_path, family, chosen):
    own = OWN[FORMS[family]]
    start = own.eos if family == "bart" else own.pad
    model = jaxlm.load(
        hubs.write(
            tmp_path / "m",
            family,
            tokenizer=own,
            pad_token_id=own.pad,
            eos_token_id=own.eos,
            decoder_start_token_id=start,
        )
    )
    how = {"shape": chosen.rows, "length": 24, "start": model.spec.encoder.start, "seed": 1}
    made = corrupted(stream(own), own, corruption(chosen, own), **how)
    every = np.arange(made.count)
    batch = made.take(every, every)
    loss = partial(language_model(z_loss=0.0, shards=1).loss, model._forward)
    sums = jax.jit(loss)(model.params, batch, None)

    net = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m").eval()
    labels = torch.tensor(np.where(batch["weights"] > 0, batch["targets"], -100)).long()
    if family == "bart":
        shifted = transformers.models.bart.modeling_bart.shift_tokens_right(
            labels, own.pad, net.config.decoder_start_token_id
        )
    else:
        shifted = net._shift_right(labels)
    real = batch["segments"] > 0
    assert (shifted.numpy()[real] == batch["tokens"][real]).all()
    with torch.no_grad():
        theirs = net(
            input_ids=torch.tensor(batch["source"]).long(),
            attention_mask=torch.tensor(batch["source_segments"]).long(),
            labels=labels,
        ).loss.item()
    assert float(sums.loss / sums.weight) == pytest.approx(theirs, rel=1e-5)
