"""Which objectives there are, and which models each trains."""

from collections.abc import Iterator

from jaxlm.models.spec import ModelSpec

TRAINS: dict[str, tuple[str, ...]] = {
    "clm": ("decoder",),
    "sft": ("decoder",),
    "mlm": ("encoder",),
    "contrastive": ("encoder", "decoder"),
    "span_corruption": ("encoder-decoder", "decoder"),
    "bart": ("encoder-decoder",),
    "ul2": ("encoder-decoder", "decoder"),
    "prefix_lm": ("decoder", "encoder-decoder"),
    "seq2seq": ("encoder-decoder",),
    "classification": ("classifier",),
    "token_classification": ("token classifier",),
}
"""By `objective.type`: the kinds of models, as `kind` names them."""


SENTINELS = ("span_corruption", "ul2")
"""Those whose tokenizer needs sentinels, whatever the model's structure."""


def kind(spec: ModelSpec) -> str:
    """What a model is to an objective: its structure, or a classifier of texts or of tokens."""
    if not spec.head.labels:
        return spec.structure
    return "token classifier" if spec.head.pool == "none" else "classifier"


def fitting(spec: ModelSpec) -> Iterator[str]:
    """The objectives that train such a model; those of labels make a head where there is none."""
    kinds = {kind(spec)}
    if not spec.head.labels:
        words = set() if spec.structure == "encoder-decoder" else {"token classifier"}
        kinds |= {"classifier"} | words
    return (name for name, trained in TRAINS.items() if kinds & {*trained})
