"""BERT (Devlin et al. 2018): norms of the residual stream itself, learned positions, token types.

Its pooler, a projection of the first token, is the transform of a sequence classifier.
"""

from typing import Any

from jaxlm.families.config import Config, Fields, Key, read_activation, their_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import (
    LM,
    NONE,
    SEQUENCE,
    TOKENS,
    head_of,
    labels,
    read_head,
    read_labels,
)
from jaxlm.families.names import Weight, norm
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 30522),
    Key("hidden_size", "embed", 768),
    Key("intermediate_size", "mlp", 3072),
    Key("num_hidden_layers", "layers", 12),
    Key("num_attention_heads", "heads", 12),
    Key("max_position_embeddings", "max_length", 512),
    Key("type_vocab_size", "embedding.types", 2),
    Key("layer_norm_eps", "norm.eps", 1e-12),
    Key("tie_word_embeddings", "tied", True),
)


def body(prefix: str) -> tuple[Weight, ...]:
    """The weights below the head, under the name that transformers has for the network."""
    embeddings, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{}}"

    def dense(ours: str, theirs: str, kernel: str, bias: str) -> tuple[Weight, ...]:
        return (
            Weight(f"encoder/blocks/{ours}/kernel", f"{layer}.{theirs}.weight", kernel),
            Weight(f"encoder/blocks/{ours}/bias", f"{layer}.{theirs}.bias", bias),
        )

    names = {"q": "query", "k": "key", "v": "value"}
    return (
        Weight("embed/embedding", f"{embeddings}.word_embeddings.weight", "v e -> v e"),
        Weight("encoder/positions/embedding", f"{embeddings}.position_embeddings.weight"),
        Weight("types/embedding", f"{embeddings}.token_type_embeddings.weight"),
        *norm("encoder/embed_norm", f"{embeddings}.LayerNorm"),
        *(
            weight
            for ours, theirs in names.items()
            for weight in dense(
                f"attn/{ours}", f"attention.self.{theirs}", "(h k) e -> e h k", "(h k) -> h k"
            )
        ),
        *dense("attn/o", "attention.output.dense", "e (h k) -> h k e", ""),
        *norm("encoder/blocks/attn_out_norm", f"{layer}.attention.output.LayerNorm"),
        *dense("mlp/up", "intermediate.dense", "f e -> e f", ""),
        *dense("mlp/down", "output.dense", "e f -> f e", ""),
        *norm("encoder/blocks/mlp_out_norm", f"{layer}.output.LayerNorm"),
    )


def transform(dense: str) -> tuple[Weight, ...]:
    """The projection of a head, by its name."""
    return (
        Weight("head/transform/kernel", f"{dense}.weight", "f e -> e f"),
        Weight("head/transform/bias", f"{dense}.bias"),
    )


def scores_bias(spec: ModelSpec, head: str) -> tuple[Weight, ...]:
    """The bias of a masked LM's scores: one tensor with the head's when that is tied."""
    name = f"{head}.bias" if spec.tied else f"{head}.decoder.bias"
    return (Weight("head/bias", name, "v -> v"),) if head_of(spec) == LM else ()


_MLM = "cls.predictions"
HEADS = {
    LM: (
        *transform(f"{_MLM}.transform.dense"),
        Weight("head/norm/scale", f"{_MLM}.transform.LayerNorm.weight"),
        Weight("head/norm/bias", f"{_MLM}.transform.LayerNorm.bias"),
        Weight("head/kernel", f"{_MLM}.decoder.weight", "v e -> e v"),
    ),
    SEQUENCE: (*transform("bert.pooler.dense"), *labels("classifier")),
    TOKENS: labels("classifier"),
    NONE: (),
}
CLASSES = {
    "BertForMaskedLM": LM,
    "BertForPreTraining": LM,
    "BertForSequenceClassification": SEQUENCE,
    "BertForTokenClassification": TOKENS,
    "BertModel": NONE,
}
CLASSIFIERS = {
    SEQUENCE: "BertForSequenceClassification",
    TOKENS: "BertForTokenClassification",
    NONE: "BertModel",
}
IGNORED = (
    r"^cls\.seq_relationship\.",
    r"^cls\.predictions\.bias$",
    r"^bert\.pooler\.",
    r"\.position_ids$",
)
"""The head for pairs of sentences, a bias and the pooler where nothing reads them, a counter."""
RENAMED = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
UNREAD = frozenset(
    {
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    }
)
"""Keys of the first releases that nothing reads."""
SHARED: Fields = {
    "structure": "encoder",
    "norm.type": "layer",
    "norm.place": "sum",
    "embedding.norm": True,
    "positions": "learned",
    "gated": False,
    "bias.qkv": True,
    "bias.out": True,
    "bias.mlp": True,
}


def fields(config: Config, known: Fields) -> Fields:
    """What every BERT has, the activation and the head."""
    kind = read_head(config, CLASSES)
    act = read_activation(config, "hidden_act", "gelu")
    check_absolute(config)
    return SHARED | act | read_classifier(config, kind, act["activation"])


def check_absolute(config: Config) -> None:
    """Refuse positions that are not learned by place."""
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise config.error("position_embedding_type", "is not supported; known is absolute")


def read_classifier(config: Config, kind: str, activation: str) -> Fields:
    """The head of each kind: the transform's nonlinearity is `activation` in a masked LM."""
    if kind == NONE:
        return {}
    if kind == LM:
        return {"head.transform": activation, "head.norm": True, "head.bias": True}
    pooled = {"head.pool": "first", "head.transform": "tanh"} if kind == SEQUENCE else {}
    return {**read_labels(config), **pooled}


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    return {
        "hidden_act": their_activation(spec),
        "hidden_dropout_prob": spec.dropout,
        "attention_probs_dropout_prob": 0.0,
        "position_embedding_type": "absolute",
    }


FAMILY = Family(
    "bert",
    "BertForMaskedLM",
    KEYS,
    fields,
    others,
    body("bert."),
    IGNORED,
    UNREAD,
    "bert.",
    CLASSIFIERS,
    lambda spec: HEADS[head_of(spec)] + scores_bias(spec, _MLM),
    {f"{_MLM}.decoder.bias": f"{_MLM}.bias"},
    RENAMED,
)
