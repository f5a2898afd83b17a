"""`jaxlm convert`: a run goes out as a folder that is the same model, and another is told apart."""

import json
import shutil

import ml_dtypes
import numpy as np
import processes
import pytest
from safetensors.numpy import load_file, save_file

from jaxlm.core import errors

LLAMA = ("steps=2", "lora.rank=0", "model.dropout=0")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a trained run and its export."""
    folder = tmp_path_factory.mktemp("convert")
    code, _, err = processes.run(*processes.words(folder, *LLAMA))
    assert code == errors.DONE, err
    code, out, err = processes.run("convert", "export", f"{folder}/run", f"{folder}/out")
    assert code == errors.DONE and "verdict" in out and "equal" in out, err
    return folder


def verify(folder, a, b):
    words = ("convert", "verify", f"{folder}/{a}", f"{folder}/{b}", "--receipt", str(folder))
    return processes.run(*words)


def test_the_receipt_names_both_sides_and_what_was_compared(exported):
    receipt = json.loads((exported / "out" / "receipt.json").read_text())
    assert receipt["verdict"] == "equal" and receipt["figures"]["as a share"] < 1e-5
    assert receipt["a"]["tokenizer"] == receipt["b"]["tokenizer"]
    assert receipt["a"]["parameters"] == receipt["b"]["parameters"]
    assert "AutoModelForCausalLM" in (exported / "out" / "README.md").read_text()


def test_sixteen_bits_are_equal_within_their_rounding(exported):
    words = ("--dtype", "bfloat16", "--max-shard-size", "20kB")
    code, _, err = processes.run("convert", "export", f"{exported}/out", f"{exported}/half", *words)
    assert code == errors.DONE, err
    files = sorted((exported / "half").glob("model-*.safetensors"))
    assert len(files) > 1
    assert {a.dtype for a in load_file(files[0]).values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_another_model_is_told_apart(exported):
    shutil.copytree(exported / "out", exported / "other")
    file = exported / "other" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name] + 0.05
    save_file(tensors, file, {"format": "pt"})
    code, out, err = verify(exported, "out", "other")
    assert code == errors.CHECKPOINT and "different" in out
    assert err.startswith("jaxlm: error: ") and "of the largest apart" in err
    assert json.loads((exported / "receipt.json").read_text())["verdict"] == "different"


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("export", "{}/run", "{}/out"), errors.CONFIG, "exists; name a folder that does not"),
        (("export", "{}/text", "{}/new"), errors.CHECKPOINT, "is neither a run"),
        (("export", "{}/run", "{}/new", "--dtype", "int8"), errors.CONFIG, "is no type of weights"),
        (("export", "{}/run", "{}/new", "--max-shard-size", "x"), errors.CONFIG, "is no size"),
        (("verify", "{}/run", "{}/out", "--text", "{}/none"), errors.CONFIG, "--text"),
        (
            ("verify", "{}/out", "{}/out", "--receipt", "{}/run/config.yaml"),
            errors.STORAGE,
            "receipt.json cannot be written",
        ),
    ],
)
def test_what_cannot_be_is_one_line(exported, words, code, line):
    found, _, err = processes.run("convert", *(word.format(exported) for word in words))
    assert found == code and line in err and err.count("\n") == 1, err
