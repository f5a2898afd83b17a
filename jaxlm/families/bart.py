"""BART (Lewis et al. 2019): an encoder-decoder with BERT's norms, learned positions in each stack.

A sequence is classified by the decoder's state at its last token, its source again the target.
"""

import math
from typing import Any

from jaxlm.families import bert
from jaxlm.families.config import Config, Fields, Key, read_activation, their_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import LM, SEQUENCE, head_of, labels, read_head, read_labels
from jaxlm.families.names import Weight, norm
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 50265),
    Key("d_model", "embed", 1024),
    Key("encoder_ffn_dim", "mlp", 4096),
    Key("encoder_layers", "encoder.layers", 12),
    Key("decoder_layers", "layers", 12),
    Key("encoder_attention_heads", "heads", 16),
    Key("max_position_embeddings", "max_length", 1024),
)
BARE = "BartModel"
CLASSES = {
    "BartForConditionalGeneration": LM,
    "BartForSequenceClassification": SEQUENCE,
    BARE: LM,
}
CLASSIFIERS = {SEQUENCE: "BartForSequenceClassification"}


def _stack(stack: str) -> tuple[Weight, ...]:
    """A stack's weights; the encoder has no attention over a source."""
    ours, theirs = f"{stack}/blocks", f"model.{stack}.layers.{{}}"
    attentions = {"attn": "self_attn", "cross": "encoder_attn"}
    norms = {"attn": "self_attn_layer_norm", "cross": "encoder_attn_layer_norm"}
    return (
        Weight(f"{stack}/positions/embedding", f"model.{stack}.embed_positions.weight"),
        *norm(f"{stack}/embed_norm", f"model.{stack}.layernorm_embedding"),
        *(w for a, b in attentions.items() for w in _projections(f"{ours}/{a}", f"{theirs}.{b}")),
        *(w for a, b in norms.items() for w in norm(f"{ours}/{a}_out_norm", f"{theirs}.{b}")),
        Weight(f"{ours}/mlp/up/kernel", f"{theirs}.fc1.weight", "f e -> e f"),
        Weight(f"{ours}/mlp/up/bias", f"{theirs}.fc1.bias"),
        Weight(f"{ours}/mlp/down/kernel", f"{theirs}.fc2.weight", "e f -> f e"),
        Weight(f"{ours}/mlp/down/bias", f"{theirs}.fc2.bias"),
        *norm(f"{ours}/mlp_out_norm", f"{theirs}.final_layer_norm"),
    )


def _projections(ours: str, theirs: str) -> tuple[Weight, ...]:
    return (
        *(
            weight
            for part in "qkv"
            for weight in (
                Weight(f"{ours}/{part}/kernel", f"{theirs}.{part}_proj.weight", "(h k) e -> e h k"),
                Weight(f"{ours}/{part}/bias", f"{theirs}.{part}_proj.bias", "(h k) -> h k"),
            )
        ),
        Weight(f"{ours}/o/kernel", f"{theirs}.out_proj.weight", "e (h k) -> h k e"),
        Weight(f"{ours}/o/bias", f"{theirs}.out_proj.bias"),
    )


WEIGHTS = (
    Weight("embed/embedding", "model.shared.weight", "v e -> v e"),
    *_stack("encoder"),
    *_stack("decoder"),
)
HEADS = {
    LM: (
        Weight("head/kernel", "lm_head.weight", "v e -> e v"),
        Weight("head/bias", "final_logits_bias", "1 v -> v"),
    ),
    SEQUENCE: (
        *bert.transform("classification_head.dense"),
        *labels("classification_head.out_proj"),
    ),
}
COPIES = {
    f"model.{stack}.embed_tokens.weight": "model.shared.weight" for stack in ("encoder", "decoder")
}
IGNORED = (r"^model\.(encoder|decoder)\.version$",)
UNREAD = frozenset(
    {
        "extra_pos_embeddings",
        "force_bos_token_to_be_generated",
        "is_encoder_decoder",
        "normalize_embedding",
        "num_hidden_layers",
    }
)
"""What is so in every BART, another name of encoder_layers, and how to generate."""


def fields(config: Config, known: Fields) -> Fields:
    """What every BART has, the embeddings' scale, the activation and the head."""
    kind = read_head(config, CLASSES)
    if not config.get("tie_word_embeddings", True):
        raise config.error(
            "tie_word_embeddings", "is not supported: both stacks and the head share one"
        )
    _check_alike(config, "decoder_ffn_dim", "encoder_ffn_dim", known["mlp"], 4096)
    _check_alike(config, "decoder_attention_heads", "encoder_attention_heads", known["heads"], 16)
    scaled = config.get("scale_embedding", False)
    bare = config.any("architectures") == [BARE]
    head = {
        LM: {"head.bias": not bare},
        SEQUENCE: {"head.pool": "last", "head.transform": "tanh"},
    }
    return {
        **bert.SHARED,
        "structure": "encoder-decoder",
        "encoder.start": config.get("decoder_start_token_id", 2),
        "embedding.offset": 2,
        "scale.embed": math.sqrt(known["embed"]) if scaled else 1.0,
        **read_activation(config, "activation_function", "gelu"),
        **head[kind],
        **(read_labels(config, 3) if kind == SEQUENCE else {}),
    }


def _check_alike(config: Config, key: str, other: str, value: int, default: int) -> None:
    if config.get(key, default) != value:
        raise config.error(key, f"is not {other}={value}; stacks of two widths are not supported")


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    return {
        "is_encoder_decoder": True,
        "num_hidden_layers": spec.encoder.layers,
        "decoder_ffn_dim": spec.mlp,
        "decoder_attention_heads": spec.heads,
        "scale_embedding": spec.scale.embed != 1.0,
        "activation_function": their_activation(spec),
        "decoder_start_token_id": spec.encoder.start,
        "forced_eos_token_id": None,
        "dropout": spec.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "tie_word_embeddings": True,
    }


FAMILY = Family(
    "bart",
    "BartForConditionalGeneration",
    KEYS,
    fields,
    others,
    WEIGHTS,
    IGNORED,
    UNREAD,
    classifiers=CLASSIFIERS,
    more=lambda spec: HEADS[head_of(spec)],
    copies=COPIES,
)
