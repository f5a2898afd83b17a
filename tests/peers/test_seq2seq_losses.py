"""Sources and targets beside transformers: the same labels, losses, and answers after export."""

import json

import hubs
import numpy as np
import processes
import pytest

import jaxlm
from jaxlm.config.objectives import Seq2seq
from jaxlm.config.schema import Examples, Source
from jaxlm.core import errors
from jaxlm.data import paired
from jaxlm.inference.export import export
from jaxlm.objectives.lm import language_model
from jaxlm.text.train import train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

RECORDS = [
    {"source": "the fox " * (1 + n % 5), "target": "a dog " * (1 + (7 * n) % 4)} for n in range(12)
]
TEXTS = [text for record in RECORDS for text in record.values()]
TOKENIZERS = {
    "t5": train("bpe", 370, TEXTS, "encoder-decoder"),
    "bart": train("bpe", 280, TEXTS, "encoder"),
}
FAMILIES = {"t5": "t5", "t5 1.1": "t5", "bart": "bart"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    """(a folder of transformers with random weights, its tokenizer)."""
    own = TOKENIZERS[FAMILIES[request.param]]
    start = own.eos if request.param == "bart" else own.pad
    ids = {"pad_token_id": own.pad, "eos_token_id": own.eos, "decoder_start_token_id": start}
    folder = tmp_path_factory.mktemp("base") / "m"
    return hubs.write(folder, request.param, tokenizer=own, dropout_rate=0.0, dropout=0.0, **ids)


def net_of(folder):
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype="float32").eval()


def test_the_loss_is_that_of_transformers(base, data):
    """Of labels that transformers' own tokenizer and collator make of the texts."""
    model, theirs = jaxlm.load(base), transformers.AutoTokenizer.from_pretrained(base)
    how = Seq2seq(), Examples(packing=False)
    opener = paired.opener(model.tokenizer, *how, length=32, start=model.spec.encoder.start)
    rows = opener(Source(path=str(data)), 0.0).train
    batch = rows.take(np.arange(rows.count), np.arange(rows.count))
    sums = language_model(z_loss=0.0, shards=1).loss(model._forward, model.params, batch, None)

    net = net_of(base)
    collate = transformers.DataCollatorForSeq2Seq(theirs, net)
    given = collate(
        [
            {**theirs(each["source"]), "labels": theirs(text_target=each["target"])["input_ids"]}
            for each in RECORDS
        ]
    )
    labels, read = given["labels"].numpy(), given["input_ids"].numpy()
    assert (batch["weights"].sum(1) == (labels != -100).sum(1)).all()
    assert (batch["source"][:, : read.shape[1]] == read).all()
    begun, said = given["decoder_input_ids"].numpy(), batch["tokens"][:, : labels.shape[1]]
    assert (said == begun)[labels != -100].all()
    with torch.no_grad():
        wanted = net(**{name: given[name] for name in given}).loss.item()
    assert float(sums.loss / sums.weight) == pytest.approx(wanted, rel=1e-5)


def test_a_tuned_model_answers_as_transformers_does_when_it_is_exported(base, data, tmp_path):
    fixed = f"objective.type=seq2seq init={base} data.train={data} run_dir={tmp_path}/run batch=4 "
    fixed += "length=32 steps=40 optimizer.learning_rate=1e-2 platform=cpu evaluate.every=0"
    code, _, error = processes.run("train", *fixed.split())
    assert code == errors.DONE, error
    model = jaxlm.load(tmp_path / "run")
    where = str(tmp_path / "run"), str(tmp_path / "out")
    export(*where, dtype=None, max_shard_bytes=10**9)
    net = net_of(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [record["source"] for record in RECORDS[:5]]
    given = theirs(asked, return_tensors="pt", padding=True)
    for beams in (1, 3):
        how = {"num_beams": beams, "max_new_tokens": 12, "do_sample": False}
        how["use_cache"] = False  # made with as many layers as T5's encoder has
        found = net.generate(**{n: given[n] for n in ("input_ids", "attention_mask")}, **how)
        said = theirs.batch_decode(found, skip_special_tokens=True)
        assert model.generate(asked, max_tokens=12, beams=beams) == said
    assert any("dog" in each for each in said)
