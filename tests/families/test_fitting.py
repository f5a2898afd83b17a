"""Which family a model trained here leaves as."""

import json
from pathlib import Path

import networks
import pytest

from jaxlm.core.errors import CheckpointError, ConfigError
from jaxlm.families import FAMILIES, computed, find, fitting, headed
from jaxlm.families.heads import SEQUENCE, TOKENS, head_of
from jaxlm.models.spec import Head

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


@pytest.mark.parametrize("kind", [SEQUENCE, TOKENS])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_classifier_has_the_head_of_its_family(name, kind):
    family, spec = find(CONFIGS[name]), find(CONFIGS[name]).spec(CONFIGS[name])
    if kind not in family.classifiers:
        what = f"{family.model_type} has no head for {kind}; take a model of .*bert"
        with pytest.raises(ConfigError, match=what):
            headed(spec, kind, 5, CONFIGS[name])
        return
    made = headed(spec, kind, 5, CONFIGS[name])
    assert made.head.labels == 5 and head_of(made) == kind
    assert made.model_copy(update={"head": spec.head}) == spec
    config = family.config(made)
    assert config["architectures"] == [family.classifiers[kind]] and len(config["id2label"]) == 5
    assert family.spec(config) == made


ROBERTA = {"pool": "first", "transform": "tanh", "bias": True}


@pytest.mark.parametrize(
    ("changes", "kind", "head"),
    [
        ({}, SEQUENCE, {"pool": "last", "bias": False}),  # Llama's
        ({}, TOKENS, {"bias": True}),
        (networks.ENCODERS["bert"], SEQUENCE, ROBERTA),
        ({"positions": "none"}, SEQUENCE, {"pool": "last", "bias": True}),
        (networks.PAIRS["t5"], SEQUENCE, {"pool": "last", "bias": True}),
        (networks.PAIRS["t5"], TOKENS, {"bias": True}),
    ],
)
def test_what_no_family_scores_gets_a_plain_head(changes, kind, head):
    assert headed(networks.spec(**changes), kind, 3).head == Head(labels=3, **head)


def test_how_a_family_pools_is_in_the_configuration_that_a_model_came_with():
    spec = FAMILIES["modernbert"].spec(CONFIGS["modernbert"])
    for pool, ours in (("cls", "first"), ("mean", "mean")):
        came = {**CONFIGS["modernbert"], "classifier_pooling": pool}
        assert headed(spec, SEQUENCE, 2, came).head.pool == ours


def test_the_table_is_by_model_type():
    assert all(name == family.model_type for name, family in FAMILIES.items())
