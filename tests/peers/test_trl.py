"""Fine-tuning beside TRL's SFTTrainer: its batches are ours, and so are ten updates on them."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import jaxlm
from jaxlm.config.optimizers import AdamW, Linear
from jaxlm.config.schema import Source
from jaxlm.core import tree
from jaxlm.data.examples import open_examples
from jaxlm.models import lora
from jaxlm.models.axes import AXES
from jaxlm.models.transformer import make_forward
from jaxlm.objectives.lm import language_model
from jaxlm.text.train import train
from jaxlm.training import optim
from jaxlm.training.step import TrainState, train_step

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.peers

STEPS, ROWS, LENGTH, RATE = 10, 4, 48, 1e-3
RECORDS = [
    {"prompt": f"what is {'one plus ' * (n % 4)}{n}?", "completion": f" it is {n}." * (1 + n % 3)}
    for n in range(STEPS * ROWS)
]
TOKENIZER = train("bpe", 280, [record["prompt"] + record["completion"] for record in RECORDS])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama of transformers with our tokenizer beside it."""
    path = tmp_path_factory.mktemp("base")
    config = transformers.LlamaConfig(
        vocab_size=TOKENIZER.vocab,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=TOKENIZER.eos,
        pad_token_id=TOKENIZER.pad,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    TOKENIZER.save(path)
    return path


def theirs(folder, out, adapter=None):
    """(the batches that SFTTrainer made, the lines that it logged) of ten steps."""
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    if adapter:
        torch.manual_seed(1)
        net = peft.get_peft_model(net, adapter)
        net.save_pretrained(out)
    trainer = trl.SFTTrainer(
        net,
        trl.SFTConfig(
            output_dir=str(out),
            max_steps=STEPS,
            per_device_train_batch_size=ROWS,
            learning_rate=RATE,
            lr_scheduler_type="linear",
            max_grad_norm=1.0,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(RECORDS),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )
    batches, collate = [], trainer.data_collator

    def kept(examples):
        batches.append({name: array.numpy() for name, array in collate(examples).items()})
        return collate(examples)

    trainer.data_collator = kept
    trainer.train()
    return batches[:STEPS], [line for line in trainer.state.log_history if "grad_norm" in line]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The same records, as the data of a run."""
    path = tmp_path_factory.mktemp("rows") / "examples.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    source = Source(path=str(path))
    how = SimpleNamespace(template=None, learn="responses", overlong="error", packing=False)
    return open_examples(source, TOKENIZER, how, length=LENGTH, hold_out=0.0, say=None)[0]


def same_rows(rows, batch):
    """The rows of ours that a batch of theirs holds, which must learn the same tokens."""
    ids, labels, real = (batch[name] for name in ("input_ids", "labels", "attention_mask"))
    known = {tuple(example.ids.tolist()): n for n, example in enumerate(rows.examples)}
    chosen = [known[tuple(row[:n].tolist())] for row, n in zip(ids, real.sum(1), strict=True)]
    found = rows.take(np.array(chosen), np.array(chosen))
    width = ids.shape[1] - 1
    learned = (labels[:, 1:] != -100).astype(np.float32)
    np.testing.assert_array_equal(found["weights"][:, :width], learned)
    assert found["weights"].sum() == learned.sum()
    there = found["weights"][:, :width] > 0
    np.testing.assert_array_equal(found["targets"][:, :width][there], labels[:, 1:][there])
    return found


def ours(params, spec, batches, trainable):
    """(loss, gradient norm) of each step on the batches."""
    layout, mask = networks.layout(), tree.select(params, trainable)
    live, _ = tree.partition(params, mask)
    section = AdamW(learning_rate=RATE, schedule=Linear(), b2=0.999, weight_decay=0.0, clip=1.0)
    optimizer = optim.build(section, live, steps=STEPS, axes=AXES)
    step = jax.jit(
        partial(
            train_step,
            forward=make_forward(spec, layout, jnp.float32),
            objective=language_model(z_loss=0.0, shards=1),
            tx=optimizer.tx,
            trainable=mask,
            microbatches=1,
        )
    )
    opt_state = optim.init_state(optimizer.tx, live, layout, AXES)
    state, found = TrainState(jnp.int32(0), params, opt_state), []
    for batch in batches:
        state, sums = step(state, batch, networks.ROOT)
        found.append((float(sums["loss"] / sums["weight"]), float(sums["grad_norm"])))
    return found


def logged(lines):
    return [(line["loss"], line["grad_norm"]) for line in lines]


def test_full_fine_tuning_is_that_of_trl(folder, rows, tmp_path):
    batches, lines = theirs(folder, tmp_path)
    model = jaxlm.load(folder)
    found = ours(model.params, model.spec, [same_rows(rows, batch) for batch in batches], ["."])
    np.testing.assert_allclose(found, logged(lines), rtol=2e-6)


def test_lora_is_that_of_peft_in_trl(folder, rows, tmp_path):
    adapter = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    batches, lines = theirs(folder, tmp_path, adapter)
    model = jaxlm.load(folder).with_adapter(tmp_path)
    batches = [same_rows(rows, batch) for batch in batches]
    found = ours(model.params, model.spec, batches, [lora.TRAINED])
    np.testing.assert_allclose(found, logged(lines), rtol=1e-5)
