"""`jaxlm inspect`: what a model is made of, told from headers alone."""

import json
import os

import hubs
import networks
import processes
import pytest

from jaxlm.core import errors, tree
from jaxlm.core.errors import CheckpointError
from jaxlm.hub.load import load_params, open_folder
from jaxlm.inference.inspect import inspect


@pytest.mark.parametrize("name", hubs.CONFIGS)
def test_a_folder_is_told_as_it_loads(tmp_path, name):
    hubs.write(tmp_path, name)
    found = inspect(tmp_path)
    leaves = tree.flatten(load_params(open_folder(tmp_path), networks.layout()))
    assert found.family == hubs.CONFIGS[name]["model_type"]
    assert {row.name: (row.shape, row.dtype) for row in found.rows} == {
        name: (leaf.shape, leaf.dtype.name) for name, leaf in leaves.items()
    }
    assert found.nbytes == tree.nbytes(leaves) and all(row.theirs for row in found.rows)


def test_no_weight_is_read(tmp_path):
    """The bytes after the header are a hole of the size that it says."""
    hubs.write(tmp_path, "llama")
    for file in tmp_path.glob("*.safetensors"):
        size, header = file.stat().st_size, int.from_bytes(file.read_bytes()[:8], "little")
        os.truncate(file, 8 + header)
        os.truncate(file, size)
    assert inspect(tmp_path).rows


def test_a_parameter_has_its_axes_and_their_names(tmp_path):
    hubs.write(tmp_path, "mixtral")
    rows = {row.name: row for row in inspect(tmp_path).rows}
    row = rows["decoder/blocks/experts/gate/kernel"]
    assert row.axes == ("layers", "experts:expert", "embed:fsdp", "mlp:tensor")
    assert row.theirs == ("model.layers.{0..2}.block_sparse_moe.experts.{0..4}.w1.weight",)
    assert row.nbytes == 3 * 5 * 32 * 40 * 4


def test_a_tensor_of_another_shape_is_named_before_anything_is_read(tmp_path):
    hubs.write(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(CheckpointError, match=r"gate_proj.*\[48, 32\]; .* makes it \[40, 32\]"):
        inspect(tmp_path)


def test_a_run_is_told_with_its_adapters(tmp_path):
    words = processes.words(tmp_path, "steps=1", "lora.rank=2", "model.dropout=0")
    code, _, err = processes.run(*words)
    assert code == errors.DONE, err
    code, out, err = processes.run("inspect", f"{tmp_path}/run")
    assert code == errors.DONE and "run, family llama" in out, err
    assert "model.layers.{0..1}.self_attn.q_proj.weight" in out and "lora_a" in out
    assert out.rstrip().splitlines()[-1].endswith("kB")


def test_what_is_no_model_is_one_line(tmp_path):
    code, _, err = processes.run("inspect", str(tmp_path))
    assert code == errors.CHECKPOINT and "is neither a run" in err and err.count("\n") == 1
