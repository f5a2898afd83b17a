"""ModernBERT (Warner et al. 2024): an encoder with rope, gated MLPs and alternating windows.

The first attention reads the normalized embeddings as they are: it has no norm of its own.
"""

from typing import Any

from jaxlm.families import bert
from jaxlm.families.config import Config, Fields, Key, read_activation, their_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import LM, NONE, SEQUENCE, TOKENS, head_of, labels, read_head, read_labels
from jaxlm.families.names import Weight, norm
from jaxlm.families.rope import Dialect, read_layered, write_layered
from jaxlm.families.windows import read_types, sliding_layers, window, write_types
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 50368),
    Key("hidden_size", "embed", 768),
    Key("intermediate_size", "mlp", 1152),
    Key("num_hidden_layers", "layers", 22),
    Key("num_attention_heads", "heads", 12),
    Key("max_position_embeddings", "max_length", 8192),
    Key("norm_eps", "norm.eps", 1e-5),
    Key("norm_bias", "norm.bias", False),
    Key("mlp_bias", "bias.mlp", False),
    Key("tie_word_embeddings", "tied", True),
)
ROPE = Dialect(theta=160000.0, theta_key="global_rope_theta", kinds=())
LOCAL = "local_rope_theta"
PATTERN = "global_attn_every_n_layers"
_LAYER = "model.layers.{}"
_QKV = tuple(f"encoder/blocks/attn/{part}" for part in "qkv")
_UP = tuple(f"encoder/blocks/mlp/{part}" for part in ("gate", "up"))


WEIGHTS = (
    Weight("embed/embedding", "model.embeddings.tok_embeddings.weight", "v e -> v e"),
    *norm("encoder/embed_norm", "model.embeddings.norm"),
    *norm("encoder/blocks/attn_norm", f"{_LAYER}.attn_norm", first=1),
    Weight(
        tuple(f"{part}/kernel" for part in _QKV), f"{_LAYER}.attn.Wqkv.weight", "(h k)| e -> e h k"
    ),
    Weight(tuple(f"{part}/bias" for part in _QKV), f"{_LAYER}.attn.Wqkv.bias", "(h k)| -> h k"),
    Weight("encoder/blocks/attn/o/kernel", f"{_LAYER}.attn.Wo.weight", "e (h k) -> h k e"),
    Weight("encoder/blocks/attn/o/bias", f"{_LAYER}.attn.Wo.bias"),
    *norm("encoder/blocks/mlp_norm", f"{_LAYER}.mlp_norm"),
    Weight(tuple(f"{part}/kernel" for part in _UP), f"{_LAYER}.mlp.Wi.weight", "f| e -> e f"),
    Weight(tuple(f"{part}/bias" for part in _UP), f"{_LAYER}.mlp.Wi.bias", "f| -> f"),
    Weight("encoder/blocks/mlp/down/kernel", f"{_LAYER}.mlp.Wo.weight", "e f -> f e"),
    Weight("encoder/blocks/mlp/down/bias", f"{_LAYER}.mlp.Wo.bias"),
    *norm("encoder/final_norm", "model.final_norm"),
)
_DENSE = (*bert.transform("head.dense"), *norm("head/norm", "head.norm"))
HEADS = {
    LM: (
        *_DENSE,
        Weight("head/kernel", "decoder.weight", "v e -> e v"),
        Weight("head/bias", "decoder.bias", "v -> v"),
    ),
    SEQUENCE: (*_DENSE, *labels("classifier")),
    TOKENS: (*_DENSE, *labels("classifier")),
    NONE: (),
}
CLASSES = {
    "ModernBertForMaskedLM": LM,
    "ModernBertForSequenceClassification": SEQUENCE,
    "ModernBertForTokenClassification": TOKENS,
    "ModernBertModel": NONE,
}
CLASSIFIERS = {
    SEQUENCE: "ModernBertForSequenceClassification",
    TOKENS: "ModernBertForTokenClassification",
    NONE: "ModernBertModel",
}
POOLS = {"cls": "first", "mean": "mean"}
UNREAD = frozenset(
    {
        "deterministic_flash_attn",
        "layer_norm_eps",
        "position_embedding_type",
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred_ignore_index",
        "sparse_prediction",
    }
)
"""How its first code ran it and which positions it scored, and names that nothing reads."""


def fields(config: Config, known: Fields) -> Fields:
    """Biases, windows, both ropes, the activation and the head."""
    bias = config.get("attention_bias", False)
    return (
        {
            "structure": "encoder",
            "norm.type": "layer",
            "embedding.norm": True,
            "bias.qkv": bias,
            "bias.out": bias,
        }
        | _positions(config, known)
        | read_activation(config, "hidden_activation", "gelu")
        | _head(config)
    )


def _positions(config: Config, known: Fields) -> Fields:
    layers, every = known["layers"], config.get(PATTERN, 3)
    if every < 1:
        raise config.error(PATTERN, "is not a number of layers")
    wide = config.get("local_attention", 128)
    if wide < 1:
        raise config.error("local_attention", "is not a width")
    if config.get("sliding_window", wide // 2) != wide // 2:  # another name of it
        raise config.error("sliding_window", f"is not half of local_attention={wide}; remove it")
    near = read_types(config, layers, [layer % every != 0 for layer in range(layers)])
    windows = window(wide // 2 + 1, near)
    rope = read_layered(config, known["max_length"], ROPE, LOCAL)
    if not windows["window.size"] or rope["rope.local_theta"] == rope["rope.theta"]:
        rope["rope.local_theta"] = 0.0
    return windows | rope


def _head(config: Config) -> Fields:
    kind = read_head(config, CLASSES)
    pool = config.get("classifier_pooling", "cls")
    if pool not in POOLS:
        raise config.error("classifier_pooling", f"is not supported; known are {', '.join(POOLS)}")
    found = {
        "head.transform": read_activation(config, "classifier_activation", "gelu")["activation"],
        "head.transform_bias": config.get("classifier_bias", False),
        "head.norm": True,
    }
    scored = config.get("decoder_bias", True)
    if kind == NONE:
        return {}
    if kind == LM:
        return found | {"head.bias": scored}
    return found | read_labels(config) | ({"head.pool": POOLS[pool]} if kind == SEQUENCE else {})


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`. Versions without layer_types know a regular pattern only."""
    near = sliding_layers(spec)
    every = next((i for i, one in enumerate(near) if i and not one), spec.layers + 1)
    head = spec.head
    theirs = {ours: name for name, ours in POOLS.items()}
    return {
        "attention_bias": spec.bias.qkv,
        "hidden_activation": their_activation(spec),
        "local_attention": 2 * max(spec.window.size - 1, 0) or 128,
        "layer_types": write_types(spec),
        PATTERN: every,
        "classifier_activation": their_activation(spec, head.transform) if head.norm else "gelu",
        "classifier_bias": head.transform_bias,
        "classifier_pooling": theirs.get(head.pool, "cls"),
        "decoder_bias": head.bias,
        **write_layered(spec, ROPE, LOCAL),
    }


FAMILY = Family(
    "modernbert",
    "ModernBertForMaskedLM",
    KEYS,
    fields,
    others,
    WEIGHTS,
    neutral=UNREAD,
    classifiers=CLASSIFIERS,
    more=lambda spec: HEADS[head_of(spec)],
)
