"""`jaxlm convert verify --against transformers`: the same model, read there and here."""

import json

import hubs
import processes
import pytest

from jaxlm.core import errors

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.peers


def against(folder, *words, receipt="."):
    words = ("--against", "transformers", "--receipt", str(receipt), *words)
    return processes.run("convert", "verify", str(folder), *words)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert", "t5", "bart"])
def test_a_folder_is_the_same_model_there(tmp_path, name):
    folder = hubs.write(tmp_path / "folder", name)
    code, out, err = against(folder, receipt=tmp_path)
    assert code == errors.DONE and "same token ids" in out, out + err
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt["figures"]["as a share"] < 1e-4 and receipt["verdict"] == "equal"
    assert receipt["b"]["read by"] == "transformers" and receipt["versions"]["torch"]


def test_of_a_run_the_export_is_read_there(tmp_path):
    code, _, err = processes.run(*processes.words(tmp_path, "steps=1", "length=64"))
    assert code == errors.DONE, err
    code, out, err = against(tmp_path / "run", receipt=tmp_path)
    assert code == errors.DONE and "equal" in out, out + err


def test_what_is_not_read_there_is_one_line(tmp_path):
    folder = hubs.write(tmp_path / "folder", "llama")
    code, _, err = against(folder, str(folder))
    assert code == errors.CONFIG and "compares" in err and err.count("\n") == 1
    code, _, err = processes.run("convert", "verify", str(folder), "--against", "torch")
    assert code == errors.CONFIG and "write --against transformers" in err
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
    code, _, err = against(folder)
    assert code == errors.CHECKPOINT and "transformers does not read it" in err
    assert err.count("\n") == 1
