"""Llama 1, 2 and 3 (Touvron et al. 2023, Grattafiori et al. 2024), and names that others share."""

from typing import Any

from jaxlm.families.config import Config, Fields, Key, read_activation, their_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import of_decoder, scored
from jaxlm.families.names import Weight
from jaxlm.families.rope import read_rope, write_rope
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 32000),
    Key("hidden_size", "embed", 4096),
    Key("intermediate_size", "mlp", 11008),
    Key("num_hidden_layers", "layers", 32),
    Key("num_attention_heads", "heads", 32),
    Key("num_key_value_heads", "kv_heads"),
    Key("head_dim", "head_dim"),
    Key("max_position_embeddings", "max_length", 2048),
    Key("rms_norm_eps", "norm.eps", 1e-6),
    Key("tie_word_embeddings", "tied", False),
    Key("mlp_bias", "bias.mlp", False),
)

EMBED = Weight("embed/embedding", "model.embed_tokens.weight", "v e -> v e")
HEAD = Weight("head/kernel", "lm_head.weight", "v e -> e v")
FINAL_NORM = Weight("decoder/final_norm/scale", "model.norm.weight")
NORMS = (
    Weight("decoder/blocks/attn_norm/scale", "model.layers.{}.input_layernorm.weight"),
    Weight("decoder/blocks/mlp_norm/scale", "model.layers.{}.post_attention_layernorm.weight"),
)
OUT = Weight(
    "decoder/blocks/attn/o/kernel", "model.layers.{}.self_attn.o_proj.weight", "e (h k) -> h k e"
)
ATTENTION = (
    *(
        Weight(
            f"decoder/blocks/attn/{part}/kernel",
            f"model.layers.{{}}.self_attn.{part}_proj.weight",
            "(h k) e -> e h k",
        )
        for part in "qkv"
    ),
    OUT,
)
QKV_BIASES = tuple(
    Weight(
        f"decoder/blocks/attn/{part}/bias",
        f"model.layers.{{}}.self_attn.{part}_proj.bias",
        "(h k) -> h k",
    )
    for part in "qkv"
)
OUT_BIAS = Weight("decoder/blocks/attn/o/bias", "model.layers.{}.self_attn.o_proj.bias")
QK_NORMS = tuple(
    Weight(
        f"decoder/blocks/attn/{part}_norm/scale", f"model.layers.{{}}.self_attn.{part}_norm.weight"
    )
    for part in "qk"
)
DOWN = Weight(
    "decoder/blocks/mlp/down/kernel", "model.layers.{}.mlp.down_proj.weight", "e f -> f e"
)
MLP = (
    *(
        Weight(
            f"decoder/blocks/mlp/{part}/kernel",
            f"model.layers.{{}}.mlp.{part}_proj.weight",
            "f e -> e f",
        )
        for part in ("gate", "up")
    ),
    DOWN,
)
MLP_BIASES = tuple(
    Weight(f"decoder/blocks/mlp/{part}/bias", f"model.layers.{{}}.mlp.{part}_proj.bias")
    for part in ("gate", "up", "down")
)
WEIGHTS = (EMBED, *NORMS, *ATTENTION, *QKV_BIASES, OUT_BIAS, *MLP, *MLP_BIASES, FINAL_NORM, HEAD)

IGNORED = (r"\.rotary_emb\.inv_freq$",)


def fields(config: Config, known: Fields) -> Fields:
    """The bias of all four projections, the activation and the rope."""
    bias = config.get("attention_bias", False)
    act = read_activation(config, "hidden_act", "silu")
    rope = read_rope(config, known["max_length"])
    return {"bias.qkv": bias, "bias.out": bias} | act | rope


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    keys = {"attention_bias": spec.bias.qkv, "hidden_act": their_activation(spec)}
    return keys | {"attention_dropout": 0.0} | write_rope(spec)


FAMILY = Family(
    "llama",
    "LlamaForCausalLM",
    KEYS,
    fields,
    others,
    WEIGHTS,
    IGNORED,
    frozenset({"max_sequence_length"}),
    classifiers=of_decoder("Llama"),
    more=scored(),
)
