"""GPT-2 (Radford et al. 2019): learned positions, biases everywhere, kernels stored transposed."""

from typing import Any

from jaxlm.families.config import Config, Fields, Key, read_activation, their_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import of_decoder, scored
from jaxlm.families.names import Weight
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 50257),
    Key("n_embd", "embed", 768),
    Key("n_inner", "mlp"),
    Key("n_layer", "layers", 12),
    Key("n_head", "heads", 12),
    Key("n_positions", "max_length", 1024),
    Key("layer_norm_epsilon", "norm.eps", 1e-5),
    Key("tie_word_embeddings", "tied", True),
)
_QKV = tuple(f"decoder/blocks/attn/{part}" for part in "qkv")
_LAYER = "transformer.h.{}"
WEIGHTS = (
    Weight("embed/embedding", "transformer.wte.weight", "v e -> v e"),
    Weight("decoder/positions/embedding", "transformer.wpe.weight"),
    Weight("decoder/blocks/attn_norm/scale", f"{_LAYER}.ln_1.weight"),
    Weight("decoder/blocks/attn_norm/bias", f"{_LAYER}.ln_1.bias"),
    Weight(
        tuple(f"{part}/kernel" for part in _QKV),
        f"{_LAYER}.attn.c_attn.weight",
        "e (h k)| -> e h k",
    ),
    Weight(tuple(f"{part}/bias" for part in _QKV), f"{_LAYER}.attn.c_attn.bias", "(h k)| -> h k"),
    Weight("decoder/blocks/attn/o/kernel", f"{_LAYER}.attn.c_proj.weight", "(h k) e -> h k e"),
    Weight("decoder/blocks/attn/o/bias", f"{_LAYER}.attn.c_proj.bias"),
    Weight("decoder/blocks/mlp_norm/scale", f"{_LAYER}.ln_2.weight"),
    Weight("decoder/blocks/mlp_norm/bias", f"{_LAYER}.ln_2.bias"),
    Weight("decoder/blocks/mlp/up/kernel", f"{_LAYER}.mlp.c_fc.weight"),
    Weight("decoder/blocks/mlp/up/bias", f"{_LAYER}.mlp.c_fc.bias"),
    Weight("decoder/blocks/mlp/down/kernel", f"{_LAYER}.mlp.c_proj.weight"),
    Weight("decoder/blocks/mlp/down/bias", f"{_LAYER}.mlp.c_proj.bias"),
    Weight("decoder/final_norm/scale", "transformer.ln_f.weight"),
    Weight("decoder/final_norm/bias", "transformer.ln_f.bias"),
    Weight("head/kernel", "lm_head.weight", "v e -> e v"),
)
IGNORED = (r"\.attn\.(bias|masked_bias)$",)
UNREAD = frozenset(
    {
        "n_ctx",
        "predict_special_tokens",
        "reorder_and_upcast_attn",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    }
)
"""An old name of n_positions, the order of operations in 16 bits, and what no head here has."""


def fields(config: Config, known: Fields) -> Fields:
    """What every GPT-2 has, the activation, and whether scores are divided by sqrt(H)."""
    scaled = config.get("scale_attn_weights", True)
    return {
        "norm.type": "layer",
        "positions": "learned",
        "gated": False,
        "bias.qkv": True,
        "bias.out": True,
        "bias.mlp": True,
        "scale.query": 0.0 if scaled else 1.0,
    } | read_activation(config, "activation_function", "gelu_new")


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    tanh = spec.activation == "gelu_tanh"
    return {
        "activation_function": "gelu_new" if tanh else their_activation(spec),
        "scale_attn_weights": spec.scale.query != 1.0,
        "embd_pdrop": spec.dropout,
        "resid_pdrop": spec.dropout,
        "attn_pdrop": 0.0,
    }


FAMILY = Family(
    "gpt2",
    "GPT2LMHeadModel",
    KEYS,
    fields,
    others,
    WEIGHTS,
    IGNORED,
    UNREAD,
    "transformer.",
    classifiers=of_decoder("GPT2"),
    more=scored(tokens="classifier"),
)
