"""Mistral (Jiang et al. 2023): Llama with a window in every layer."""

from typing import Any

from jaxlm.families import llama
from jaxlm.families.config import Config, Fields, Key, read_activation, their_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import of_decoder, scored
from jaxlm.families.rope import read_rope, write_rope
from jaxlm.families.windows import read_size, window
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 32000),
    Key("hidden_size", "embed", 4096),
    Key("intermediate_size", "mlp", 14336),
    Key("num_hidden_layers", "layers", 32),
    Key("num_attention_heads", "heads", 32),
    Key("num_key_value_heads", "kv_heads", 8),
    Key("head_dim", "head_dim"),
    Key("max_position_embeddings", "max_length", 131072),
    Key("rms_norm_eps", "norm.eps", 1e-6),
    Key("tie_word_embeddings", "tied", False),
)
WEIGHTS = (
    llama.EMBED,
    *llama.NORMS,
    *llama.ATTENTION,
    *llama.MLP,
    llama.FINAL_NORM,
    llama.HEAD,
)


def fields(config: Config, known: Fields) -> Fields:
    """The window, the activation and the rope."""
    near = window(read_size(config, 4096), [True])
    act = read_activation(config, "hidden_act", "silu")
    return near | act | read_rope(config, known["max_length"])


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    keys = {"sliding_window": spec.window.size or None, "hidden_act": their_activation(spec)}
    return keys | {"attention_dropout": 0.0} | write_rope(spec)


FAMILY = Family(
    "mistral",
    "MistralForCausalLM",
    KEYS,
    fields,
    others,
    WEIGHTS,
    llama.IGNORED,
    classifiers=of_decoder("Mistral"),
    more=scored(),
)
