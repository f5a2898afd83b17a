"""Fine-tuning a BERT beside Trainer of transformers: its batches are ours, and fifty updates."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import jaxlm
from jaxlm.config.objectives import Classification
from jaxlm.config.optimizers import AdamW, Linear
from jaxlm.config.schema import Source
from jaxlm.core import tree
from jaxlm.data import labeling
from jaxlm.data.classified import Reads
from jaxlm.models.axes import AXES
from jaxlm.models.transformer import make_forward
from jaxlm.objectives import classify
from jaxlm.text.train import train
from jaxlm.training import optim
from jaxlm.training.step import TrainState, train_step

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.peers

STEPS, ROWS, LENGTH, RATE = 50, 8, 32, 1e-3
WORDS = {"0": ["dull", "slow", "weak", "flat"], "1": ["warm", "bright", "funny", "fresh"]}
RECORDS = [
    {"text": f"a {WORDS[label][n % 4]} film " + "indeed " * (n % 7), "label": label}
    for n in range(STEPS * ROWS)
    for label in (str(n * 7 // 3 % 2),)
]
TOKENIZER = train("bpe", 300, [record["text"] for record in RECORDS], "encoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small BERT with its classifier, and our tokenizer beside it."""
    path = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=TOKENIZER.vocab,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=TOKENIZER.pad,
        num_labels=2,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(path)
    TOKENIZER.save(path)
    return path


def theirs(folder, out):
    """(the batches that Trainer made, the losses and gradient norms that it logged)."""
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [{**reader(each["text"]), "labels": int(each["label"])} for each in RECORDS]
    trainer = transformers.Trainer(
        transformers.BertForSequenceClassification.from_pretrained(folder),
        transformers.TrainingArguments(
            output_dir=str(out),
            max_steps=STEPS,
            per_device_train_batch_size=ROWS,
            learning_rate=RATE,
            lr_scheduler_type="linear",
            max_grad_norm=1.0,
            logging_steps=1,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        data_collator=transformers.DataCollatorWithPadding(reader),
    )
    batches, collate = [], trainer.data_collator

    def kept(examples):
        batches.append({name: array.numpy() for name, array in collate(examples).items()})
        return collate(examples)

    trainer.data_collator = kept
    trainer.train()
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    return batches[:STEPS], [(line["loss"], line["grad_norm"]) for line in lines]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The same records, as the data of a run."""
    path = tmp_path_factory.mktemp("rows") / "texts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    how = SimpleNamespace(overlong="error", packing=False)
    chosen = Classification(labels=("0", "1"))
    opener = labeling.opener(TOKENIZER, chosen, how, Reads(types=True), length=LENGTH, say=None)
    return opener(Source(path=str(path)), 0.0).train


def same_rows(rows, batch):
    """The rows of ours that a batch of theirs holds."""
    known = {tuple(text.ids.tolist()): n for n, text in enumerate(rows.texts)}
    lengths = batch["attention_mask"].sum(1)
    ids = [tuple(row[:n].tolist()) for row, n in zip(batch["input_ids"], lengths, strict=True)]
    chosen = np.array([known[row] for row in ids])
    found = rows.take(chosen, chosen)
    np.testing.assert_array_equal(found["targets"][:, 0], batch["labels"])
    width = batch["input_ids"].shape[1]
    np.testing.assert_array_equal(found["segments"][:, :width] > 0, batch["attention_mask"])
    return found


def test_fifty_updates_are_those_of_trainer(folder, rows, tmp_path):
    batches, lines = theirs(folder, tmp_path)
    model = jaxlm.load(folder)
    layout, mask = networks.layout(), tree.select(model.params, ["."])
    section = AdamW(learning_rate=RATE, schedule=Linear(), b2=0.999, weight_decay=0.0, clip=1.0)
    optimizer = optim.build(section, model.params, steps=STEPS, axes=AXES)
    step = jax.jit(
        partial(
            train_step,
            forward=make_forward(model.spec, layout, jnp.float32),
            objective=classify.single(("0", "1")),
            tx=optimizer.tx,
            trainable=mask,
            microbatches=1,
        )
    )
    opt_state = optim.init_state(optimizer.tx, model.params, layout, AXES)
    state, found = TrainState(jnp.int32(0), model.params, opt_state), []
    for batch in batches:
        state, sums = step(state, same_rows(rows, batch), networks.ROOT)
        found.append((float(sums["loss"] / sums["weight"]), float(sums["grad_norm"])))
    losses, norms = zip(*found, strict=True)
    wanted, wanted_norms = zip(*lines, strict=True)
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    np.testing.assert_allclose(norms, wanted_norms, rtol=1e-3)
    assert wanted[-1] < 0.7 * wanted[0]
