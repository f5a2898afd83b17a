"""RoBERTa (Liu et al. 2019): BERT whose positions begin after the padding's, with other heads."""

from typing import Any

from jaxlm.families import bert
from jaxlm.families.config import Config, Fields, Key, read_activation
from jaxlm.families.family import Family
from jaxlm.families.heads import LM, NONE, SEQUENCE, TOKENS, head_of, labels, read_head
from jaxlm.families.names import Weight
from jaxlm.models.spec import ModelSpec

KEYS = (
    Key("vocab_size", "vocab", 50265),
    *(key for key in bert.KEYS if key.theirs not in ("vocab_size", "max_position_embeddings")),
)
HEADS = {
    LM: (
        *bert.transform("lm_head.dense"),
        Weight("head/norm/scale", "lm_head.layer_norm.weight"),
        Weight("head/norm/bias", "lm_head.layer_norm.bias"),
        Weight("head/kernel", "lm_head.decoder.weight", "v e -> e v"),
    ),
    SEQUENCE: (*bert.transform("classifier.dense"), *labels("classifier.out_proj")),
    TOKENS: labels("classifier"),
    NONE: (),
}
CLASSES = {
    "RobertaForMaskedLM": LM,
    "RobertaForSequenceClassification": SEQUENCE,
    "RobertaForTokenClassification": TOKENS,
    "RobertaModel": NONE,
}
CLASSIFIERS = {
    SEQUENCE: "RobertaForSequenceClassification",
    TOKENS: "RobertaForTokenClassification",
    NONE: "RobertaModel",
}
IGNORED = (r"^lm_head\.bias$", r"^roberta\.pooler\.", r"\.position_ids$")


def fields(config: Config, known: Fields) -> Fields:
    """What every BERT has, where positions begin, the activation and the head.

    A masked LM's transform has the exact gelu, whatever the body has.
    """
    kind = read_head(config, CLASSES)
    act = read_activation(config, "hidden_act", "gelu")
    bert.check_absolute(config)
    offset = config.get("pad_token_id", 1) + 1
    rows = config.get("max_position_embeddings", 512)
    if not 0 < offset < rows:
        raise config.error("pad_token_id", f"leaves none of max_position_embeddings={rows}")
    positions = {"embedding.offset": offset, "max_length": rows - offset}
    return bert.SHARED | positions | act | bert.read_classifier(config, kind, "gelu")


def others(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `fields`."""
    offset = spec.embedding.offset
    rows = {"pad_token_id": offset - 1, "max_position_embeddings": spec.max_length + offset}
    return bert.others(spec) | rows


FAMILY = Family(
    "roberta",
    "RobertaForMaskedLM",
    KEYS,
    fields,
    others,
    bert.body("roberta."),
    IGNORED,
    prefix="roberta.",
    classifiers=CLASSIFIERS,
    more=lambda spec: HEADS[head_of(spec)] + bert.scores_bias(spec, "lm_head"),
    copies={"lm_head.decoder.bias": "lm_head.bias"},
)
