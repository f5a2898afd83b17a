"""Qwen 2 and 2.5 (Yang et al. 2024): Llama with biased queries, keys and values."""

from typing import Any

from jaxlm.families import llama
from jaxlm.families.config import Config, Fields, Key, read_activation, their_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import of_decoder, scored
from jaxlm.families.rope import read_rope, write_rope
from jaxlm.families.windows import read_size, read_types, sliding_layers, window, write_types
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 151936),
    Key("hidden_size", "embed", 4096),
    Key("intermediate_size", "mlp", 22016),
    Key("num_hidden_layers", "layers", 32),
    Key("num_attention_heads", "heads", 32),
    Key("num_key_value_heads", "kv_heads", 32),
    Key("head_dim", "head_dim"),
    Key("max_position_embeddings", "max_length", 32768),
    Key("rms_norm_eps", "norm.eps", 1e-6),
    Key("tie_word_embeddings", "tied", False),
)
WEIGHTS = (
    llama.EMBED,
    *llama.NORMS,
    *llama.ATTENTION,
    *llama.QKV_BIASES,
    *llama.MLP,
    llama.FINAL_NORM,
    llama.HEAD,
)


def fields(config: Config, known: Fields) -> Fields:
    """The windows, the activation and the rope."""
    act = read_activation(config, "hidden_act", "silu")
    rope = read_rope(config, known["max_length"])
    return {"bias.qkv": True} | read_windows(config, known["layers"]) | act | rope


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    keys = {"hidden_act": their_activation(spec), "attention_dropout": 0.0}
    return keys | write_windows(spec) | write_rope(spec)


def read_windows(config: Config, layers: int) -> Fields:
    """The first max_window_layers see everything, when use_sliding_window is set at all."""
    size, first = read_size(config, 4096), config.get("max_window_layers", 28)
    on = config.get("use_sliding_window", False) and size > 0
    near = read_types(config, layers, [on and layer >= first for layer in range(layers)])
    if any(near) and not on:
        raise config.error("layer_types", "has windows, and use_sliding_window is not set")
    return window(size, near)


def write_windows(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `read_windows`. Versions without layer_types know only the last layers."""
    near = sliding_layers(spec)
    return {
        "use_sliding_window": any(near),
        "sliding_window": spec.window.size or None,
        "max_window_layers": near.index(True) if any(near) else spec.layers,
        "layer_types": write_types(spec),
    }


FAMILY = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    KEYS,
    fields,
    others,
    WEIGHTS,
    llama.IGNORED,
    classifiers=of_decoder("Qwen2"),
    more=scored(),
)
