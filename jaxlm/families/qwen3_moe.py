"""Qwen 3 with sparse experts (Yang et al. 2025)."""

from typing import Any

from jaxlm.families import llama
from jaxlm.families.config import Config, Fields, Key, read_activation, read_keys, their_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import of_decoder, scored
from jaxlm.families.names import Weight
from jaxlm.families.rope import read_rope, write_rope
from jaxlm.families.windows import read_size, window
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 151936),
    Key("hidden_size", "embed", 2048),
    Key("moe_intermediate_size", "mlp", 768),
    Key("num_hidden_layers", "layers", 24),
    Key("num_attention_heads", "heads", 32),
    Key("num_key_value_heads", "kv_heads", 4),
    Key("head_dim", "head_dim"),
    Key("num_experts", "experts.count", 128),
    Key("num_experts_per_tok", "experts.chosen", 8),
    Key("norm_topk_prob", "experts.normalized", False),
    Key("max_position_embeddings", "max_length", 32768),
    Key("rms_norm_eps", "norm.eps", 1e-6),
    Key("tie_word_embeddings", "tied", False),
)
EXPERTS = (
    Weight("decoder/blocks/experts/router/kernel", "model.layers.{}.mlp.gate.weight", "x e -> e x"),
    *(
        Weight(
            f"decoder/blocks/experts/{part}/kernel",
            f"model.layers.{{}}.mlp.experts.{{}}.{part}_proj.weight",
            pattern,
        )
        for part, pattern in (("gate", "f e -> e f"), ("up", "f e -> e f"), ("down", "e f -> f e"))
    ),
)
WEIGHTS = (
    llama.EMBED,
    *llama.NORMS,
    *llama.ATTENTION,
    *llama.QKV_BIASES,
    llama.OUT_BIAS,
    *llama.QK_NORMS,
    *EXPERTS,
    llama.FINAL_NORM,
    llama.HEAD,
)


def fields(config: Config, known: Fields) -> Fields:
    """The experts, which every layer has, the biases, the window, the activation and the rope."""
    if config.get("decoder_sparse_step", 1) != 1:
        raise config.error("decoder_sparse_step", "is not supported: every layer has experts here")
    size, on = read_size(config, 4096), config.get("use_sliding_window", False)
    if not on:
        config.any("max_window_layers")
    config.any("intermediate_size")  # of layers without experts, which there are none of
    bias = config.get("attention_bias", False)
    found: Fields = {"norm.qk": "head", "bias.qkv": bias, "bias.out": bias}
    if "num_local_experts" in config:  # what transformers 5 writes
        found |= read_keys(config, [Key("num_local_experts", "experts.count")])
        if config.get("num_experts", found["experts.count"]) != found["experts.count"]:
            raise config.error("num_local_experts", "is not num_experts; remove one of them")
    found |= window(size if on else 0, [True])
    found |= read_activation(config, "hidden_act", "silu")
    return found | read_rope(config, known["max_length"])


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    return {
        "intermediate_size": spec.mlp,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "attention_bias": spec.bias.qkv,
        "attention_dropout": 0.0,
        "use_sliding_window": bool(spec.window.size),
        "sliding_window": spec.window.size or None,
        "hidden_act": their_activation(spec),
        **write_rope(spec),
    }


FAMILY = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    KEYS,
    fields,
    others,
    WEIGHTS,
    llama.IGNORED,
    classifiers=of_decoder("Qwen3Moe"),
    more=scored(),
)
