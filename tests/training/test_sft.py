"""Supervised fine-tuning: the same step on examples, and what a run says of them."""

import json
from types import SimpleNamespace

import hubs
import jax
import networks
import numpy as np
import processes
import pytest
import tokenizers

import jaxlm
from jaxlm.config.schema import Source
from jaxlm.data.examples import open_examples
from jaxlm.text.chat import builtin, of
from jaxlm.text.train import train

TOKENIZER = train("bpe", 280, ["what is one plus two? it is three."] * 30)
RECORDS = [{"prompt": f"what is {n}? " * (1 + n % 3), "completion": "it is"} for n in range(12)]


def write(folder, records=RECORDS, name="examples.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_packed_is_not_packed(tmp_path):
    """Losses and gradients of the same examples, in few rows or in one each."""
    source = Source(path=str(write(tmp_path)))
    spec = networks.spec(vocab=TOKENIZER.vocab, max_length=64)
    run = jax.jit(jax.value_and_grad(networks.loss(spec)))
    found = []
    for packing in (True, False):
        how = SimpleNamespace(template=None, learn="responses", overlong="error", packing=packing)
        rows, _, _ = open_examples(source, TOKENIZER, how, length=64, hold_out=0.0, say=None)
        every = np.arange(rows.count)
        found.append(run(networks.params(spec), rows.take(every, every)))
    (loss, slope), (other, slope_too) = found
    np.testing.assert_allclose(loss, other, rtol=1e-5)
    networks.assert_close(slope, slope_too)


def test_a_run_says_and_keeps_what_became_of_its_examples(tmp_path):
    long = {"prompt": "what " * 200, "completion": "it is"}
    path = write(tmp_path, [*RECORDS, long])
    words = f"objective.type=sft data.train={path} examples.overlong=drop steps=2 "
    words += f"run_dir={tmp_path}/run length=64"
    code, out, error = processes.run("train", *processes.TINY, *words.split())
    assert code == 0, error
    assert "13 examples of prompt, completion" in out + error
    (audit,) = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert audit["kept"] == audit["ends_trained"] == 12 and audit["dropped"] == {"too long": 1}
    (lost,) = map(json.loads, (tmp_path / "run" / "dropped.jsonl").read_text().splitlines())
    assert lost["where"] == f"{path}:13" and lost["why"] == "drop"
    code, out, error = processes.run("train", *processes.TINY, *words.split())
    assert code == 0 and "nothing left to do" in out + error


def test_a_run_is_asked_as_it_was_taught(tmp_path):
    """A template chosen by name is the run's own: written, and its end ends answers."""
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    folder = tmp_path / "tokenizer"
    hubs.TOKENIZER.save(folder)
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.save(str(folder / "tokenizer.json"))
    words = f"objective.type=sft data.train={write(tmp_path, [chat] * 4)} examples.template=chatml "
    words += f"steps=1 run_dir={tmp_path}/run length=64 tokenizer.path={folder}"
    tiny = [word for word in processes.TINY if not word.startswith("tokenizer")]
    code, out, error = processes.run("train", *tiny, *words.split())
    assert code == 0 and "the end token in 4 of 4 examples" in out + error
    own = jaxlm.load(tmp_path / "run").tokenizer
    end = own.names["<|im_end|>"]
    assert end in own.ends and own.eos in own.ends
    taught = builtin(own, "chatml").apply(own, chat["messages"])
    assert of(own).apply(own, chat["messages"]) == taught and taught.count(end) == 2


@pytest.mark.parametrize(
    ("record", "more", "code", "line"),
    [
        ({"q": "a"}, [], 3, "the columns are q; examples have one of: messages;"),
        ({"instruction": "a", "output": "b"}, [], 3, "no chat template; add examples.template="),
        ({"prompt": "a " * 99, "completion": "b"}, [], 3, "tokens are more than length=32"),
        (RECORDS[0], ["examples.learn=first"], 2, "examples.learn"),
        (
            RECORDS[0],
            ["objective.type=clm", "examples.packing=false"],
            2,
            "examples.packing is of objective.type=sft or",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_one_line(tmp_path, record, more, code, line):
    path = write(tmp_path, [record])
    words = f"objective.type=sft data.train={path} steps=1 run_dir={tmp_path}/run length=32"
    found, _, error = processes.run("train", *processes.TINY, *words.split(), *more)
    assert found == code and line in error.splitlines()[-1] and "Traceback" not in error
