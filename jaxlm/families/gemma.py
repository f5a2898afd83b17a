"""Gemma (Mesnard et al. 2024): scales around zero, embeddings times sqrt(D), a gated tanh GELU."""

import math
from typing import Any

from jaxlm.families import llama
from jaxlm.families.config import Config, Fields, Key, read_activation, their_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import of_decoder, scored
from jaxlm.families.rope import read_rope, write_rope
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 256000),
    Key("hidden_size", "embed", 3072),
    Key("intermediate_size", "mlp", 24576),
    Key("num_hidden_layers", "layers", 28),
    Key("num_attention_heads", "heads", 16),
    Key("num_key_value_heads", "kv_heads", 16),
    Key("head_dim", "head_dim", 256),
    Key("max_position_embeddings", "max_length", 8192),
    Key("rms_norm_eps", "norm.eps", 1e-6),
    Key("tie_word_embeddings", "tied", True),
)
WEIGHTS = (
    llama.EMBED,
    *llama.NORMS,
    *llama.ATTENTION,
    *llama.QKV_BIASES,
    llama.OUT_BIAS,
    *llama.MLP,
    llama.FINAL_NORM,
    llama.HEAD,
)


def fields(config: Config, known: Fields) -> Fields:
    """The scales, the biases, the activation and the rope."""
    act = read_activation(config, "hidden_act", "gelu_pytorch_tanh")
    if act["activation"] == "gelu":  # early files say so, and mean the approximation
        act = {"activation": "gelu_tanh"}
    if "hidden_activation" in config and read_activation(config, "hidden_activation", "") != act:
        raise config.error("hidden_activation", "says other than hidden_act; remove one of them")
    return shared(config, known) | act | read_rope(config, known["max_length"])


def shared(config: Config, known: Fields) -> Fields:
    """What every Gemma has."""
    bias = config.get("attention_bias", False)
    return {
        "norm.shift": 1.0,
        "scale.embed": math.sqrt(max(known["embed"], 1)),
        "bias.qkv": bias,
        "bias.out": bias,
    }


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    act = their_activation(spec)
    keys = {"attention_bias": spec.bias.qkv, "attention_dropout": 0.0}
    return keys | {"hidden_act": act, "hidden_activation": act} | write_rope(spec)


FAMILY = Family(
    "gemma",
    "GemmaForCausalLM",
    KEYS,
    fields,
    others,
    WEIGHTS,
    llama.IGNORED,
    classifiers=of_decoder("Gemma"),
    more=scored(),
)
