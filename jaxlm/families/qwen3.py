"""Qwen 3 (Yang et al. 2025): each head's queries and keys are normalized."""

from typing import Any

from jaxlm.families import llama, qwen2
from jaxlm.families.config import Config, Fields, Key
from jaxlm.families.family import Family
from jaxlm.families.heads import of_decoder, scored
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 151936),
    Key("hidden_size", "embed", 4096),
    Key("intermediate_size", "mlp", 22016),
    Key("num_hidden_layers", "layers", 32),
    Key("num_attention_heads", "heads", 32),
    Key("num_key_value_heads", "kv_heads", 32),
    Key("head_dim", "head_dim", 128),
    Key("max_position_embeddings", "max_length", 32768),
    Key("rms_norm_eps", "norm.eps", 1e-6),
    Key("tie_word_embeddings", "tied", False),
)
WEIGHTS = (
    llama.EMBED,
    *llama.NORMS,
    *llama.ATTENTION,
    *llama.QKV_BIASES,
    llama.OUT_BIAS,
    *llama.QK_NORMS,
    *llama.MLP,
    llama.FINAL_NORM,
    llama.HEAD,
)


def fields(config: Config, known: Fields) -> Fields:
    """As in Qwen 2, but for the biases, which all four projections have or none."""
    bias = config.get("attention_bias", False)
    norm: Fields = {"norm.qk": "head"}
    return qwen2.fields(config, known) | {"bias.qkv": bias, "bias.out": bias} | norm


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    return qwen2.others(spec) | {"attention_bias": spec.bias.qkv}


FAMILY = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    KEYS,
    fields,
    others,
    WEIGHTS,
    llama.IGNORED,
    classifiers=of_decoder("Qwen3"),
    more=scored(),
)
