"""config.json: every key counts, both dialects say the same, and nothing else than a line comes."""

import json
from pathlib import Path

import pytest

from jaxlm.core.errors import CheckpointError
from jaxlm.families import FAMILIES, find, notes, training_notes
from jaxlm.models.spec import ModelSpec, Rope, Window

HERE = Path(__file__).parent
CONFIGS = json.loads((HERE / "configs.json").read_text())
HUB = json.loads((HERE / "hub.json").read_text())
"""Files as older versions of transformers wrote them, with all that stands in them."""
OLDER = ("rope_theta", "rope_scaling", "rope_local_base_freq", "rotary_emb_base", "rotary_pct")


def refused(values):
    """The line about a config.json."""
    with pytest.raises(CheckpointError) as error:
        find(values).spec(values)
    assert error.value.where.startswith("config.json") and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_as_the_same_spec_in_either_dialect(name):
    family = find(CONFIGS[name])
    spec = family.spec(CONFIGS[name])
    both = family.config(spec)
    assert family.spec(json.loads(json.dumps(both))) == spec
    if spec.positions == "rope":
        newer = {key: value for key, value in both.items() if key not in OLDER}
        older = {key: value for key, value in both.items() if key != "rope_parameters"}
        assert family.spec(newer) == family.spec(older) == spec


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_a_table_is_read_and_written(name):
    family = find(CONFIGS[name])
    written = family.config(family.spec(CONFIGS[name]))
    assert {key.theirs for key in family.keys} <= set(written)
    assert len({key.ours for key in family.keys}) == len(family.keys)


def test_every_key_of_a_table_is_moved_off_its_default_by_a_configuration():
    for family in FAMILIES.values():
        mine = [one for one in CONFIGS.values() if one["model_type"] == family.model_type]
        for key in family.keys:
            assert any(one.get(key.theirs, key.default) != key.default for one in mine), key


@pytest.mark.parametrize("values", HUB, ids=lambda values: values["model_type"])
def test_old_files_are_read(values):
    spec = find(values).spec(values)
    assert isinstance(spec, ModelSpec) and spec.vocab == values["vocab_size"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gpt2", {"n_special": 0, "predict_special_tokens": True, "_num_labels": 1}),
        ("llama", {"is_llama_config": True, "rope_interleaved": False}),
        ("llama", {"transformers.js_config": {"dtype": "q4"}, "_flash_attn_2_enabled": True}),
        ("gemma2", {"_attn_implementation_autoset": True}),
        ("bert", {"output_past": True, "sentence_transformers": {"version": "4.1.0"}}),
    ],
)
def test_what_files_of_the_hub_say_besides_changes_nothing(name, more):
    assert find(CONFIGS[name]).spec(CONFIGS[name] | more) == find(CONFIGS[name]).spec(CONFIGS[name])


def test_dialects_that_disagree_are_refused():
    theirs = FAMILIES["llama"].config(FAMILIES["llama"].spec(CONFIGS["llama"]))
    assert "rope_theta" in refused(theirs | {"rope_theta": 7.0})
    scaling = theirs["rope_scaling"] | {"factor": 2.0}
    assert "rope_scaling" in refused(theirs | {"rope_scaling": scaling})


def test_a_key_that_nobody_reads_is_named_unless_it_is_empty():
    for name, values in CONFIGS.items():
        assert "residual_multiplier=0.22" in refused(values | {"residual_multiplier": 0.22}), name
        find(values).spec(values | {"residual_multiplier": None, "off": False, "none": [], "no": 0})
    part = CONFIGS["llama"]["rope_scaling"] | {"mrope_section": [1, 2]}
    assert "rope_scaling: mrope_section" in refused(CONFIGS["llama"] | {"rope_scaling": part})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "hidden_act", "quick_gelu"),
        ("llama", "hidden_size", "32"),
        ("llama", "num_hidden_layers", 10**9),
        ("llama", "quantization_config", {"bits": 4}),
        ("llama", "partial_rotary_factor", 0.5),
        ("mistral", "layer_types", ["full_attention"] * 3),
        ("qwen2", "layer_types", ["chunked_attention"] * 4),
        ("qwen2", "use_mrope", True),
        ("qwen3_moe", "decoder_sparse_step", 2),
        ("qwen3_moe", "mlp_only_layers", [1]),
        ("qwen3_moe", "max_window_layers", 2),
        ("gemma", "use_bidirectional_attention", True),
        ("gemma3_text", "attn_logit_softcapping", 50.0),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "add_cross_attention", True),
        ("mixtral", "router_jitter_noise", 0.1),
        ("mixtral", "num_local_experts", 0),
        ("qwen3_moe", "num_local_experts", 5),
        ("mistral", "sliding_window", 0),
        ("gpt2", "n_inner", 0),
        ("llama", "rope_theta", 0.0),
        ("t5", "decoder_start_token_id", 10**6),
        ("bert", "architectures", [["BertForMaskedLM"]]),
    ],
)
def test_an_option_that_is_not_supported_is_named(name, key, value):
    assert key in refused(CONFIGS[name] | {key: value})


@pytest.mark.parametrize(
    "part",
    [
        {"rope_type": "proportional", "factor": 2.0},
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": 0.5},
        {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 7},
        {"rope_type": "yarn", "factor": 2.0, "truncate": False},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2.0]},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
    ],
)
def test_a_rope_that_is_not_supported_is_refused(part):
    refused(CONFIGS["llama"] | {"rope_scaling": part})


ODD = [None, True, -1, 0, 1, 3, 0.5, "x", "", [], [1], {}, {"a": 1}, 10**400, 1e400, float("nan")]


def spoiled(values):
    """The same with one value, here or in a part, that is odd."""
    for key, value in values.items():
        yield from (values | {key: odd} for odd in ODD)
        if isinstance(value, dict):
            yield from (values | {key: part} for part in spoiled(value))


@pytest.mark.parametrize("name", CONFIGS)
def test_whatever_a_key_holds_the_answer_is_a_spec_or_one_line(name):
    family = find(CONFIGS[name])
    newer = {k: v for k, v in family.config(family.spec(CONFIGS[name])).items() if k not in OLDER}
    for values in (*spoiled(CONFIGS[name]), *spoiled(newer)):
        try:
            assert isinstance(family.spec(values), ModelSpec)
        except CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < 300, values


def test_windows_are_of_the_layers_that_have_them():
    specs = {name: find(values).spec(values) for name, values in CONFIGS.items()}
    assert specs["mistral"].window == Window(size=5)
    assert specs["qwen2"].window == Window(size=5, full=(0, 1))
    assert specs["qwen3"].window == Window(size=5, full=(1, 3))
    assert specs["gemma2"].window == Window(size=5, full=(1, 3))
    assert specs["gemma3_text"].window == Window(size=5, full=(2,))
    plain = CONFIGS["qwen2"] | {"use_sliding_window": False}
    assert FAMILIES["qwen2"].spec(plain).window == Window()
    absent = {key: v for key, v in CONFIGS["mistral"].items() if key != "sliding_window"}
    assert FAMILIES["mistral"].spec(absent).window.size == 4096
    assert FAMILIES["mistral"].spec(absent | {"sliding_window": None}).window.size == 0


def test_the_exact_gelu_of_early_gemma_files_means_its_approximation():
    for values in ({"hidden_act": "gelu"}, {"hidden_act": "gelu_new", "hidden_activation": None}):
        assert FAMILIES["gemma"].spec(CONFIGS["gemma"] | values).activation == "gelu_tanh"
    both = {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}
    assert FAMILIES["gemma"].spec(CONFIGS["gemma"] | both).activation == "gelu_tanh"
    assert "hidden_activation" in refused(CONFIGS["gemma"] | {"hidden_activation": "relu"})


def test_an_odd_number_of_turning_dimensions_is_refused():
    assert "3 of the 8 dimensions" in refused(CONFIGS["gpt_neox"] | {"rotary_pct": 0.4})
    odd = CONFIGS["gpt2"] | {"n_embd": 36, "n_head": 12}
    assert FAMILIES["gpt2"].spec(odd).head_dim == 3


def test_older_names_of_a_scaling_are_known():
    part = CONFIGS["phi3"]["rope_scaling"] | {"type": "su"}
    spec = FAMILIES["phi3"].spec(CONFIGS["phi3"] | {"rope_scaling": part})
    assert spec.rope.scaling == "longrope" and spec.rope.original_length == 16
    spec = FAMILIES["llama"].spec(CONFIGS["llama"] | {"rope_scaling": {"type": "default"}})
    assert spec.rope == Rope(theta=500.0)


def test_an_unknown_model_type_gets_the_known_ones():
    for values in ({}, {"model_type": None}, {"model_type": "rwkv"}, {"model_type": ["llama"]}):
        with pytest.raises(CheckpointError, match="known are bart, .*qwen3_moe") as error:
            find(values)
        assert error.value.code == 4


def test_what_is_not_followed_on_purpose_gets_a_line():
    assert notes(CONFIGS["llama"]) == training_notes(CONFIGS["llama"]) == notes(HUB[0]) == []
    drops, code = training_notes(HUB[0]), notes(HUB[8])
    routers = training_notes({"output_router_logits": True, "router_aux_loss_coef": 0.02})
    assert routers == ["router_aux_loss_coef=0.02 is ignored: model.balance_loss sets it"]
    assert [line.partition("=")[0] for line in drops] == ["attn_pdrop", "embd_pdrop", "resid_pdrop"]
    assert len(code) == 1 and "auto_map" in code[0]
