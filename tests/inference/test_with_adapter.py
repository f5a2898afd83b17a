"""Adapters in folders: of a run, onto a model, swapped, and refused where they do not belong."""

import json

import hubs
import networks
import numpy as np
import processes
import pytest
from safetensors.numpy import load_file, save_file

import jaxlm
from jaxlm import cli
from jaxlm.core import errors, tree
from jaxlm.core.errors import CheckpointError
from jaxlm.hub.adapter import BASE, QUANTIZED, read_tensors
from jaxlm.models import lora


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return hubs.write(tmp_path_factory.mktemp("base"), "llama")


def test_adapters_swap_without_a_compilation_and_share_the_base(base, tmp_path):
    model = jaxlm.load(base)
    rows = [[1, 2, 3, 4]]
    plain = np.asarray(model.logits(rows))
    for seed in (1, 2):
        hubs.write_adapter(model, tmp_path / str(seed), seed)
    one = model.with_adapter(tmp_path / "1")
    first, compiled = np.asarray(one.logits(rows)), model._logits._cache_size()
    other = one.with_adapter(tmp_path / "2")
    second = np.asarray(other.logits(rows))
    assert model._logits._cache_size() == compiled == 2
    assert np.abs(first - plain).max() > 0.1 and np.abs(first - second).max() > 0.1
    networks.assert_same(model.logits(rows), plain)
    networks.assert_same(one.with_adapter(tmp_path / "1").logits(rows), first)
    kernel = "decoder/blocks/attn/q/kernel"
    assert tree.flatten(other.params)[kernel] is tree.flatten(model.params)[kernel]


@pytest.mark.parametrize("how", [{}, {"dora": True}, {"init": "pissa"}, {"rslora": True}])
def test_what_is_read_is_what_was_written(base, tmp_path, how):
    model = jaxlm.load(base)
    params = hubs.write_adapter(model, tmp_path / "out", 1, **how)
    found = model.with_adapter(tmp_path / "out").params
    networks.assert_close(lora.merge(found), lora.merge(params))


def test_another_base_is_refused_unless_forced(base, tmp_path):
    hubs.write_adapter(jaxlm.load(base), tmp_path / "out", 1)
    other = hubs.write(tmp_path / "other", "llama", change=lambda p: tree.map_named(moved, p))
    with pytest.raises(CheckpointError, match="was trained on another base"):
        jaxlm.load(other).with_adapter(tmp_path / "out")
    jaxlm.load(other).with_adapter(tmp_path / "out", force=True)


def moved(name, leaf):
    return leaf + 1 if name.endswith("final_norm/scale") else leaf


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"peft_type": "LOHA"}, "is not of peft_type LORA"),
        ({"init_lora_weights": "pissa"}, "has changed the base"),
        ({"bias": "all"}, "bias is not none"),
        ({"trainable_token_indices": [1]}, "holds no rows for them"),
        ({"trainable_token_indices": {"embed_tokens": ["a"]}}, "is no list of ids"),
        ({"target_parameters": ["mlp.experts"]}, "is not supported"),
        ({"alpha_pattern": {"(a+)+": 1}}, "is no name of a module"),
        ({"alpha_pattern": {"q_proj": None}}, "lora_alpha: None is no number"),
        ({"rank_pattern": [1]}, "rank_pattern is no object"),
        ({"r": 64}, "has the rank [0-9]+, and adapter_config.json r=64; download both"),
        ({"use_dora": True}, "has no lora_magnitude_vector, and adapter_config.json says use_dora"),
    ],
)
def test_what_is_no_plain_adapter_is_one_line(base, tmp_path, change, line):
    model = jaxlm.load(base)
    hubs.write_adapter(model, tmp_path / "out", 1)
    file = tmp_path / "out" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=line):
        model.with_adapter(tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("q_proj.lora_A", "x_proj.lora_A", "adapts nothing that the base has"),
        ("q_proj.lora_B", "x_proj.lora_B", "has lora_A and no lora_B"),
        ("base_model.model.", "", "does not begin with"),
    ],
)
def test_a_tensor_that_has_no_place_is_named(base, tmp_path, old, new, line):
    model = jaxlm.load(base)
    hubs.write_adapter(model, tmp_path / "out", 1)
    file = tmp_path / "out" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace(old, new): x for name, x in tensors.items()}, file)
    with pytest.raises(CheckpointError, match=line):
        model.with_adapter(tmp_path / "out")


@pytest.mark.parametrize(
    ("kept", "line"), [(99, "k_proj has NaN or infinity in it"), (0, "holds no tensor; save")]
)
def test_an_adapter_that_is_empty_or_no_number_is_refused(base, tmp_path, kept, line):
    model = jaxlm.load(base)
    hubs.write_adapter(model, tmp_path / "out", 1)
    file = tmp_path / "out" / "adapter_model.safetensors"
    tensors = {name: np.full_like(x, np.nan) for name, x in load_file(file).items()}
    save_file(dict([*tensors.items()][:kept]), file)
    with pytest.raises(CheckpointError, match=line):
        model.with_adapter(tmp_path / "out")


@pytest.mark.once
def test_a_run_is_exported_as_its_adapter_which_generates_with_the_base(base, tmp_path, capsys):
    own = [w for w in processes.words(tmp_path) if not w.startswith(("model.", "token"))]
    words = [
        *own,
        f"init={base}",
        "lora.rank=2",
        "lora.save=[final_norm]",
        "steps=1",
        "frozen_dtype=int8",
    ]
    code, _, err = processes.run(*words)
    assert code == errors.DONE, err
    assert cli.run(["adapter", "export", f"{tmp_path}/run", f"{tmp_path}/out"]) == errors.DONE
    assert "adapter, llama" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["norm"]
    told = read_tensors(tmp_path / "out")[1]
    assert told[BASE] and told[QUANTIZED] == "int8"
    generate = ("generate", str(base), "--adapter", f"{tmp_path}/out", "--prompt", "def ")
    assert cli.run([*generate, "--max-tokens", "4"]) == errors.DONE
    assert capsys.readouterr().out.startswith("def ")
