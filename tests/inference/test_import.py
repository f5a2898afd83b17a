"""`jaxlm convert import`: a folder becomes a checkpoint that every verb opens, and leaves again."""

import json
import os
import resource
import socket
import subprocess
import sys

import hubs
import numpy as np
import processes
import pytest

import jaxlm
from jaxlm.checkpoint import inspect as checkpoints
from jaxlm.core import errors, tree
from jaxlm.core.errors import CheckpointError, StorageError
from jaxlm.hub.tensors import open_tensors
from jaxlm.inference.export import export
from jaxlm.inference.imported import import_folder
from jaxlm.inference.inspect import inspect
from jaxlm.inference.verify import verify


def silent(line):
    raise AssertionError(line)


def mixed(params):
    """Every type of weights, leaf by leaf."""
    kinds = ("float32", "bfloat16", "float16")
    leaves = enumerate(tree.flatten(params).items())
    return tree.unflatten({name: leaf.astype(kinds[at % 3]) for at, (name, leaf) in leaves})


@pytest.mark.parametrize("name", hubs.CONFIGS)
def test_import_then_export_is_the_identity(tmp_path, name):
    source = hubs.write(tmp_path / "source", name, change=mixed)
    import_folder(str(source), f"{tmp_path}/in", dtype=None, warn=silent)
    export(f"{tmp_path}/in", f"{tmp_path}/out", dtype=None, max_shard_bytes=10**9)
    first, second = open_tensors(source), open_tensors(tmp_path / "out")
    assert first.keys() == second.keys()
    assert {tensor.dtype.name for tensor in first.table.values()} >= {"float32", "bfloat16"}
    for one in first:
        assert first[one].dtype == second[one].dtype
        assert first[one].tobytes() == second[one].tobytes(), one
    before, after = (
        json.loads((f / "config.json").read_text()) for f in (source, tmp_path / "out")
    )
    assert after == before | {"dtype": after["dtype"], "torch_dtype": after["dtype"]}


@pytest.mark.parametrize("name", ["bert", "bert tokens", "bart", "bart sequence", "t5"])
def test_every_structure_is_compared(tmp_path, name):
    source = hubs.write(tmp_path / "source", name)
    import_folder(str(source), f"{tmp_path}/in", dtype=None, warn=silent)
    found = verify(str(source), f"{tmp_path}/in")
    assert found["verdict"] == "equal" and found["figures"]["largest difference"] == 0
    assert found["figures"]["largest score"] > 0


@pytest.mark.once
def test_every_verb_opens_an_import(tmp_path):
    source = hubs.write(tmp_path / "source", "llama")
    words = ("convert", "import", str(source), f"{tmp_path}/in")
    code, out, err = processes.run(*words)
    assert code == errors.DONE and "verdict" in out and "equal" in out, err
    assert json.loads((tmp_path / "in" / "receipt.json").read_text())["verdict"] == "equal"
    ids = np.arange(12)[None]
    one, other = (jaxlm.load(tmp_path / name).logits(ids) for name in ("source", "in"))
    np.testing.assert_array_equal(one, other)
    assert inspect(tmp_path / "in").rows == inspect(source).rows
    assert not checkpoints.verify(tmp_path / "in" / "checkpoints").problems
    own = [word for word in processes.words(tmp_path) if not word.startswith(("model.", "token"))]
    for steps in ("steps=1", "steps=2"):  # the second continues
        code, _, err = processes.run(*own, f"init={tmp_path}/in", "lora.rank=2", steps)
        assert code == errors.DONE, err
    code, out, err = processes.run(
        "generate", f"{tmp_path}/in", "--prompt", "def ", "--max-tokens", "8"
    )
    assert code == errors.DONE and out.startswith("def "), err
    code, _, err = processes.run("eval", f"{tmp_path}/in")
    assert code == errors.CHECKPOINT and "is an import and no run" in err


def test_a_run_leaves_as_the_family_that_it_came_from(tmp_path):
    """Without windows Mistral is a Llama; with its configuration it stays what it was."""
    source = hubs.write(tmp_path / "source", "mistral", sliding_window=None)
    own = [word for word in processes.words(tmp_path) if not word.startswith(("model.", "token"))]
    code, _, err = processes.run(*own, f"init={source}", "steps=1", "param_dtype=bfloat16")
    assert code == errors.DONE, err
    export(f"{tmp_path}/run", f"{tmp_path}/out", dtype=None, max_shard_bytes=10**9)
    before, after = (
        json.loads((d / "config.json").read_text()) for d in (source, tmp_path / "out")
    )
    assert after == before | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    assert inspect(tmp_path / "run").family == "mistral"


def test_sixteen_bits_on_request(tmp_path):
    source = hubs.write(tmp_path / "source", "gpt2")
    import_folder(str(source), f"{tmp_path}/in", dtype="bfloat16", warn=silent)
    assert {row.dtype for row in inspect(tmp_path / "in").rows} == {"bfloat16"}


def test_an_import_on_a_mesh_has_the_same_logits(tmp_path):
    source = hubs.write(tmp_path / "source", "qwen3")
    import_folder(str(source), f"{tmp_path}/in", dtype=None, warn=silent)
    one, eight = (
        jaxlm.load(tmp_path / "in", mesh=mesh).logits(np.arange(12)[None])
        for mesh in (None, {"fsdp": 4, "tensor": 2})
    )
    np.testing.assert_allclose(one, eight, atol=1e-4)


def test_weights_that_are_no_numbers_are_refused_and_nothing_is_left(tmp_path):
    def spoil(params):
        params["decoder"]["final_norm"]["scale"] *= np.nan
        return params

    source = hubs.write(tmp_path / "source", "llama", change=spoil)
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        import_folder(str(source), f"{tmp_path}/in", dtype=None, warn=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_full_disk_leaves_nothing(tmp_path):
    source = hubs.write(tmp_path / "source", "llama")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(StorageError):
            import_folder(str(source), f"{tmp_path}/in", dtype=None, warn=lambda line: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("{}/source", "{}/source"), errors.CONFIG, "exists; name a folder that does not"),
        (("{}/none", "{}/in"), errors.CHECKPOINT, "cannot be read"),
        (("{}/source", "{}/in", "--dtype", "int8"), errors.CONFIG, "is no type of weights"),
        (("{}/source", "{}/[in]"), errors.CONFIG, "bracket"),
    ],
)
def test_what_cannot_be_imported_is_one_line(tmp_path, words, code, line):
    hubs.write(tmp_path / "source", "llama")
    found, _, err = processes.run("convert", "import", *(word.format(tmp_path) for word in words))
    assert found == code and line in err and err.count("\n") == 1, err


def test_how_to_generate_stays_but_for_ids(tmp_path):
    source = hubs.write(tmp_path / "source", "llama")
    said = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 0, "transformers_version": "4.40"}
    (source / "generation_config.json").write_text(json.dumps(said))
    import_folder(str(source), f"{tmp_path}/in", dtype=None, warn=silent)
    for name in (str(source), f"{tmp_path}/in"):
        out = tmp_path / f"out{len(name)}"
        export(name, str(out), dtype=None, max_shard_bytes=10**9)
        found = json.loads((out / "generation_config.json").read_text())
        assert found == {**said, **{key: found[key] for key in found if key.endswith("_id")}}
        assert "eos_token_id" in found


def test_a_path_that_arrays_cannot_have_is_refused_from_inside_too(tmp_path, monkeypatch):
    source = hubs.write(tmp_path / "source", "llama")
    (inside := tmp_path / "a[1]").mkdir()
    monkeypatch.chdir(inside)
    with pytest.raises(errors.ConfigError, match="bracket"):
        import_folder(str(source), "in", dtype=None, warn=silent)
    assert list(inside.iterdir()) == []


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_writes_is_not(tmp_path):
    source, host = hubs.write(tmp_path / "source", "llama"), socket.gethostname()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (dead.pid, os.getppid()):
        (tmp_path / f".out-{host}-{process}").mkdir()
    (tmp_path / f".out2-{host}-{dead.pid}").mkdir()
    export(str(source), f"{tmp_path}/out", dtype=None, max_shard_bytes=10**9)
    left = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("."))
    assert left == sorted([f".out-{host}-{os.getppid()}", f".out2-{host}-{dead.pid}"])
