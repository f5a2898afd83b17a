"""Adapters through every family's table: what is written is what is read, fused tensors too."""

import json

import hubs
import networks
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError
from jaxlm.families import find
from jaxlm.hub.adapter import put_adapter, read_adapter
from jaxlm.hub.adapter_save import save_adapter
from jaxlm.models import lora

EVERY = {values["model_type"]: name for name, values in hubs.CONFIGS.items()}


def made(name, **how):
    """(spec, family, base, the base with adapters that do something) of a configuration."""
    config = hubs.CONFIGS[name]
    spec, family = find(config).spec(config), find(config)
    base = networks.params(spec)
    given = {"rank": 2, "alpha": 3.0, "targets": ["all-linear"]} | how

    def one(name, leaf):
        noise = np.random.default_rng([*name.encode()]).normal(size=leaf.shape)
        return leaf + noise.astype(leaf.dtype) if name.endswith(("lora_b", "lora_m")) else leaf

    params = lora.add(base, networks.layout(), networks.ROOT, **given)
    return spec, family, base, tree.map_named(one, params)


def read_onto(path, base, spec, family):
    """`base` with the adapter in a folder."""
    return put_adapter(base, read_adapter(path, base, spec, family)[0], networks.layout())


@pytest.mark.parametrize("how", [{}, {"targets": ["attn/[qv]/kernel"], "dora": True}])
@pytest.mark.parametrize("name", EVERY.values())
def test_an_adapter_comes_back_through_its_familys_names(name, how, tmp_path):
    spec, family, base, params = made(name, **how)
    save_adapter(tmp_path / "out", params, spec, family)
    found = read_onto(tmp_path / "out", base, spec, family)
    networks.assert_close(lora.merge(found), lora.merge(params))


def test_a_fused_tensor_has_the_ranks_of_its_parts(tmp_path):
    spec, family, _, params = made("gpt2")
    save_adapter(tmp_path / "out", params, spec, family)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    beside = "base_model.model.transformer.h.0.attn.c_attn"
    assert tensors[f"{beside}.lora_A.weight"].shape == (6, spec.embed)
    assert tensors[f"{beside}.lora_B.weight"].shape[1] == 6
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] and config["r"] == 2 and config["lora_alpha"] == 3
    assert config["rank_pattern"] == {"c_attn": 6} and config["alpha_pattern"] == {"c_attn": 9}
    assert config["target_modules"] == ["c_attn", "c_fc", "c_proj"]


def test_of_a_tied_embedding_every_copy_is_written_and_must_be_equal(tmp_path):
    spec, family, base, params = made("llama")
    assert spec.tied
    save_adapter(tmp_path / "out", params, spec, family, saved=["embed/embedding"])
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["embed_tokens", "lm_head"]
    found = read_onto(tmp_path / "out", base, spec, family)
    networks.assert_same(found["embed"], {"embedding": zeroed(params, spec)})


def test_one_of_tied_tensors_alone_is_refused_unless_peft_ties_them(tmp_path):
    spec, family, base, params = made("llama")
    moved = {**params, "embed": {"embedding": params["embed"]["embedding"] + 1}}
    save_adapter(tmp_path / "out", moved, spec, family, saved=["embed/embedding"])
    file = tmp_path / "out" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop("base_model.model.lm_head.weight")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="which the base ties it to"):
        read_onto(tmp_path / "out", base, spec, family)
    config = tmp_path / "out" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"ensure_weight_tying": True}))
    read_onto(tmp_path / "out", base, spec, family)


def zeroed(params, spec):
    """The embedding without what pads the vocabulary, which no file has."""
    return params["embed"]["embedding"].at[spec.vocab :].set(0)


@pytest.mark.parametrize(
    ("name", "saved", "line"),
    [
        ("bert", "head/bias", "is no module that PEFT can save"),
        ("gpt2", "decoder/blocks/attn/o/bias", "has an adapter and is trained whole too"),
    ],
)
def test_what_peft_cannot_hold_apart_is_one_line(name, saved, line, tmp_path):
    spec, family, _, params = made(name)
    with pytest.raises(CheckpointError, match=line):
        save_adapter(tmp_path / "out", params, spec, family, saved=[saved])
