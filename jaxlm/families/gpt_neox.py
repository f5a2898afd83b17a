"""GPT-NeoX and Pythia (Black et al. 2022): attention and MLP side by side, part of a head turns."""

from typing import Any

from jaxlm.families.config import Config, Fields, Key, read_activation, their_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import of_decoder, scored
from jaxlm.families.names import Weight
from jaxlm.families.rope import Dialect, read_rope, write_rope
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 50432),
    Key("hidden_size", "embed", 6144),
    Key("intermediate_size", "mlp", 24576),
    Key("num_hidden_layers", "layers", 44),
    Key("num_attention_heads", "heads", 64),
    Key("max_position_embeddings", "max_length", 2048),
    Key("layer_norm_eps", "norm.eps", 1e-5),
    Key("use_parallel_residual", "parallel", True),
    Key("tie_word_embeddings", "tied", False),
)
ROPE = Dialect(theta_key="rotary_emb_base", share=0.25, share_key="rotary_pct")

_QKV = tuple(f"decoder/blocks/attn/{part}" for part in "qkv")
_LAYER = "gpt_neox.layers.{}"
_FUSED = f"{_LAYER}.attention.query_key_value"
WEIGHTS = (
    Weight("embed/embedding", "gpt_neox.embed_in.weight", "v e -> v e"),
    Weight("decoder/blocks/attn_norm/scale", f"{_LAYER}.input_layernorm.weight"),
    Weight("decoder/blocks/attn_norm/bias", f"{_LAYER}.input_layernorm.bias"),
    Weight("decoder/blocks/mlp_norm/scale", f"{_LAYER}.post_attention_layernorm.weight"),
    Weight("decoder/blocks/mlp_norm/bias", f"{_LAYER}.post_attention_layernorm.bias"),
    Weight(tuple(f"{part}/kernel" for part in _QKV), f"{_FUSED}.weight", "(h s k) e -> s e h k"),
    Weight(tuple(f"{part}/bias" for part in _QKV), f"{_FUSED}.bias", "(h s k) -> s h k"),
    Weight("decoder/blocks/attn/o/kernel", f"{_LAYER}.attention.dense.weight", "e (h k) -> h k e"),
    Weight("decoder/blocks/attn/o/bias", f"{_LAYER}.attention.dense.bias"),
    Weight("decoder/blocks/mlp/up/kernel", f"{_LAYER}.mlp.dense_h_to_4h.weight", "f e -> e f"),
    Weight("decoder/blocks/mlp/up/bias", f"{_LAYER}.mlp.dense_h_to_4h.bias"),
    Weight("decoder/blocks/mlp/down/kernel", f"{_LAYER}.mlp.dense_4h_to_h.weight", "e f -> f e"),
    Weight("decoder/blocks/mlp/down/bias", f"{_LAYER}.mlp.dense_4h_to_h.bias"),
    Weight("decoder/final_norm/scale", "gpt_neox.final_layer_norm.weight"),
    Weight("decoder/final_norm/bias", "gpt_neox.final_layer_norm.bias"),
    Weight("head/kernel", "embed_out.weight", "v e -> e v"),
)
IGNORED = (r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",)


def fields(config: Config, known: Fields) -> Fields:
    """What every GPT-NeoX has, the attention's biases, the activation and the rope."""
    bias = config.get("attention_bias", True)
    fixed: Fields = {"norm.type": "layer", "gated": False, "bias.mlp": True}
    act = read_activation(config, "hidden_act", "gelu")
    rope = read_rope(config, known["max_length"], ROPE)
    return fixed | {"bias.qkv": bias, "bias.out": bias} | act | rope


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    return {
        "attention_bias": spec.bias.qkv,
        "attention_dropout": 0.0,
        "hidden_dropout": spec.dropout,
        "hidden_act": their_activation(spec),
        **write_rope(spec, ROPE),
    }


FAMILY = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    KEYS,
    fields,
    others,
    WEIGHTS,
    IGNORED,
    frozenset({"is_decoder"}),
    "gpt_neox.",
    classifiers=of_decoder("GPTNeoX"),
    more=scored(tokens="classifier"),
)
