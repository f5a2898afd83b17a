"""T5 1.0 (Raffel et al. 2020) and 1.1 (Shazeer 2020): biases of scores by relative position.

Scores are not scaled. Where the head is tied, 1.0's, its input is: by 1 / sqrt(D).
"""

from typing import Any

from jaxlm.families.config import ACTIVATIONS, Config, Fields, Key, their_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import LM, read_head
from jaxlm.families.names import Weight
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 32128),
    Key("d_model", "embed", 512),
    Key("d_kv", "head_dim", 64),
    Key("d_ff", "mlp", 2048),
    Key("num_layers", "encoder.layers", 6),
    Key("num_decoder_layers", "layers"),
    Key("num_heads", "heads", 8),
    Key("relative_attention_num_buckets", "relative.buckets", 32),
    Key("relative_attention_max_distance", "relative.distance", 128),
    Key("layer_norm_epsilon", "norm.eps", 1e-6),
)
ENDLESS = 2**20
"""Positions: relative ones do not end, so n_positions is what the model was trained on only."""


def _attention(stack: str, part: str, ours: str, theirs: str) -> tuple[Weight, ...]:
    """The projections and the norm of one of a stack's attentions."""
    layer = f"{stack}.block.{{}}.layer.{part}"
    return (
        *(
            Weight(
                f"{stack}/blocks/{ours}/{one}/kernel",
                f"{layer}.{theirs}.{one}.weight",
                "(h k) e -> e h k",
            )
            for one in "qkv"
        ),
        Weight(f"{stack}/blocks/{ours}/o/kernel", f"{layer}.{theirs}.o.weight", "e (h k) -> h k e"),
        Weight(f"{stack}/blocks/{ours}_norm/scale", f"{layer}.layer_norm.weight"),
    )


def _mlp(stack: str, part: str, gated: bool) -> tuple[Weight, ...]:
    ours, theirs = f"{stack}/blocks/mlp", f"{stack}.block.{{}}.layer.{part}"
    names = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    return (
        *(
            Weight(f"{ours}/{a}/kernel", f"{theirs}.DenseReluDense.{b}.weight", "f e -> e f")
            for a, b in names.items()
        ),
        Weight(f"{ours}/down/kernel", f"{theirs}.DenseReluDense.wo.weight", "e f -> f e"),
        Weight(f"{ours}_norm/scale", f"{theirs}.layer_norm.weight"),
    )


def _ends(stack: str) -> tuple[Weight, ...]:
    """What a stack has once."""
    biases = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return (
        Weight(f"{stack}/relative/embedding", biases),
        Weight(f"{stack}/final_norm/scale", f"{stack}.final_layer_norm.weight"),
    )


WEIGHTS = (
    Weight("embed/embedding", "shared.weight", "v e -> v e"),
    *_attention("encoder", "0", "attn", "SelfAttention"),
    *_ends("encoder"),
    *_attention("decoder", "0", "attn", "SelfAttention"),
    *_attention("decoder", "1", "cross", "EncDecAttention"),
    *_ends("decoder"),
    Weight("head/kernel", "lm_head.weight", "v e -> e v"),
)
CLASSES = {"T5ForConditionalGeneration": LM, "T5WithLMHeadModel": LM}
IGNORED = (r"EncDecAttention\.relative_attention_bias\.weight$",)
"""What old versions saved and none read."""
COPIES = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
    "lm_head.weight": "shared.weight",
}
UNREAD = frozenset({"is_encoder_decoder", "n_positions"})
"""What is so in every T5, and the length of training."""


def fields(config: Config, known: Fields) -> Fields:
    """What every T5 has, the activation, the decoder's depth and the head."""
    read_head(config, CLASSES)
    name = config.get("feed_forward_proj", "relu")
    gated, act = name.startswith("gated-"), name.removeprefix("gated-")
    act = "gelu_new" if name == "gated-gelu" else act
    if act not in ACTIVATIONS:
        raise config.error("feed_forward_proj", "is not supported; known: relu, gated-gelu, ...")
    for key, value in {"dense_act_fn": act, "is_gated_act": gated}.items():  # as newer files write
        if config.get(key, value) != value:
            raise config.error(key, f"is not what feed_forward_proj={name!r} says; remove it")
    depth = {} if "num_decoder_layers" in config else {"layers": known["encoder.layers"]}
    pad = config.get("pad_token_id", 0)
    # Newer versions write that every head is tied; what is not scaled may have its own.
    tied = config.get("tie_word_embeddings", True)
    scaled = config.get("scale_decoder_outputs", tied)
    return {
        "structure": "encoder-decoder",
        "encoder.start": config.get("decoder_start_token_id", pad),
        "positions": "relative",
        "max_length": ENDLESS,
        "scale.query": 1.0,
        "scale.output": known["embed"] ** -0.5 if scaled else 1.0,
        "activation": ACTIVATIONS[act],
        "gated": gated,
        "tied": tied and scaled,
        **depth,
    }


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    name = their_activation(spec)
    if spec.gated:
        name = "gated-gelu" if spec.activation == "gelu_tanh" else f"gated-{name}"
    return {
        "is_encoder_decoder": True,
        "decoder_start_token_id": spec.encoder.start,
        "dropout_rate": spec.dropout,
        "feed_forward_proj": name,
        "tie_word_embeddings": spec.tied,
        "scale_decoder_outputs": spec.scale.output != 1.0,
    }


FAMILY = Family(
    "t5",
    "T5ForConditionalGeneration",
    KEYS,
    fields,
    others,
    WEIGHTS,
    IGNORED,
    UNREAD,
    "",
    more=lambda spec: _mlp("encoder", "1", spec.gated) + _mlp("decoder", "2", spec.gated),
    copies=COPIES,
)
