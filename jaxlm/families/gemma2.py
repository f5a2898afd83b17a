"""Gemma 2 (Riviere et al. 2024): norms on both sides, soft caps, a window in every other layer."""

from typing import Any

from jaxlm.families import gemma, llama
from jaxlm.families.config import Config, Fields, Key, read_activation, their_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import of_decoder, scored
from jaxlm.families.names import Weight
from jaxlm.families.rope import read_rope, write_rope
from jaxlm.families.windows import read_size, read_types, window, write_types
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 256000),
    Key("hidden_size", "embed", 2304),
    Key("intermediate_size", "mlp", 9216),
    Key("num_hidden_layers", "layers", 26),
    Key("num_attention_heads", "heads", 8),
    Key("num_key_value_heads", "kv_heads", 4),
    Key("head_dim", "head_dim", 256),
    Key("max_position_embeddings", "max_length", 8192),
    Key("rms_norm_eps", "norm.eps", 1e-6),
    Key("attn_logit_softcapping", "scale.scores_cap", 50.0),
    Key("final_logit_softcapping", "scale.logits_cap", 30.0),
    Key("tie_word_embeddings", "tied", True),
)
NORMS = tuple(
    Weight(f"decoder/blocks/{ours}/scale", f"model.layers.{{}}.{theirs}_layernorm.weight")
    for ours, theirs in (
        ("attn_norm", "input"),
        ("attn_out_norm", "post_attention"),
        ("mlp_norm", "pre_feedforward"),
        ("mlp_out_norm", "post_feedforward"),
    )
)
WEIGHTS = (
    llama.EMBED,
    *NORMS,
    *llama.ATTENTION,
    *llama.QKV_BIASES,
    llama.OUT_BIAS,
    *llama.MLP,
    llama.FINAL_NORM,
    llama.HEAD,
)
UNREAD = frozenset({"hidden_act", "sliding_window_size"})
"""Keys of early files that transformers does not read: hidden_activation and sliding_window are."""


def fields(config: Config, known: Fields) -> Fields:
    """The scales, the windows, the activation and the rope."""
    layers = known["layers"]
    near = read_types(config, layers, [layer % 2 == 0 for layer in range(layers)])
    return (
        shared(config, known)
        | window(read_size(config, 4096), near)
        | read_rope(config, known["max_length"])
    )


def shared(config: Config, known: Fields) -> Fields:
    """What Gemma 2 and 3 have and Gemma has not."""
    width = config.get("query_pre_attn_scalar", 256.0)
    if width <= 0:
        raise config.error("query_pre_attn_scalar", "is not a width")
    usual = width == (known["head_dim"] or known["embed"] // max(known["heads"], 1))
    found: Fields = {"norm.place": "both", "scale.query": 0.0 if usual else width**-0.5}
    act = read_activation(config, "hidden_activation", "gelu_pytorch_tanh")
    return gemma.shared(config, known) | found | act


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    return shared_others(spec) | write_rope(spec)


def shared_others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `shared`, and the windows."""
    query = spec.scale.query
    return {
        "attention_bias": spec.bias.qkv,
        "attention_dropout": 0.0,
        "hidden_activation": their_activation(spec),
        "layer_types": write_types(spec),
        "sliding_window": spec.window.size or None,
        "query_pre_attn_scalar": round(query**-2) if query else spec.head_dim,
    }


FAMILY = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    KEYS,
    fields,
    others,
    WEIGHTS,
    llama.IGNORED,
    UNREAD,
    classifiers=of_decoder("Gemma2"),
    more=scored(),
)
