"""Which family a model trained here leaves as."""

import json
from pathlib import Path

import networks
import pytest

from jaxlm.core.errors import CheckpointError
from jaxlm.families import FAMILIES, computed, find, fitting

CONFIGS = json.loads((Path(__file__).parent / "configs.json").read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_fits_what_it_reads(name):
    family = find(CONFIGS[name])
    assert fitting(family.spec(CONFIGS[name])) is family


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "llama"),
        ({"dropout": 0.1, "remat": "full", "unroll": 2, "init_scale": 0.1}, "llama"),
        ({"bias": {"qkv": True}}, "qwen2"),
        ({"window": {"size": 4}}, "mistral"),
        ({"window": {"size": 4, "full": (0,)}, "bias": {"qkv": True}}, "qwen2"),
        ({"norm": {"qk": "head"}}, "qwen3"),
        ({"experts": {"count": 4}}, "mixtral"),
        ({"experts": {"count": 4, "normalized": False}, "norm": {"qk": "head"}}, "qwen3_moe"),
        (networks.GPT2, "gpt2"),
        ({"rope": {"factor": 3.0, "original_length": 4}}, "llama"),  # without a scaling, unused
    ],
)
def test_a_model_trained_here_leaves_as_the_family_that_computes_the_same(changes, name):
    spec = networks.spec(**changes)
    family = fitting(spec)
    assert family.model_type == name
    assert computed(family.spec(family.config(spec))) == computed(spec)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"positions": "none"}, "positions"),
        ({"norm": {"type": "layer"}}, "norm.type"),
        ({"scale": {"query": 0.3}}, "scale.query"),
        ({"bias": {"out": True}}, "bias.out"),
        ({"rope": {"share": 0.5}, "norm": {"qk": "all"}}, "norm.qk"),
        ({"experts": {"count": 4}, "norm": {"place": "both"}}, "norm.place"),
        ({"layers": 2000}, "2000"),
    ],
)
def test_what_no_family_has_is_named(changes, field):
    with pytest.raises(CheckpointError) as error:
        fitting(networks.spec(**changes))
    assert field in str(error.value) and "\n" not in str(error.value)


def test_an_imported_model_leaves_as_what_it_was():
    family = FAMILIES["phi3"]
    plain = {k: v for k, v in CONFIGS["phi3 plain"].items() if k != "partial_rotary_factor"}
    assert fitting(family.spec(plain)).model_type == "llama"
    assert fitting(family.spec(plain), "phi3") is family
    assert fitting(networks.spec(bias={"qkv": True}), "phi3").model_type == "qwen2"


def test_the_table_is_by_model_type():
    assert all(name == family.model_type for name, family in FAMILIES.items())
