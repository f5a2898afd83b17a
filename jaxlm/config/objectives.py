"""The keys of each objective: what is learned."""

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from jaxlm.config.values import (
    Beta,
    Count,
    NonNegative,
    Positive,
    Rate,
    Share,
    Stretch,
    Whole,
    many,
)
from jaxlm.core.errors import ConfigError
from jaxlm.core.section import Section

MOST_LABELS = 2000
"""More are a column of something else; reports have a table of all of them by all."""
Names = Annotated[
    tuple[str, ...], BeforeValidator(many, json_schema_input_type=str | tuple[str, ...])
]


class LanguageModel(Section):
    """What all that predict ids have."""

    z_loss: NonNegative = 0.0
    """Weight of log(Z)^2, which keeps the logits' scale (Chowdhery et al. 2022, section 5)."""


class Clm(LanguageModel):
    """The next token of documents."""

    type: Literal["clm"] = "clm"
    kl_to_base: NonNegative = 0.0
    """Weight of the divergence KL(base || tuned) at each learned token, with adapters alone."""


class Sft(LanguageModel):
    """The answers in examples."""

    type: Literal["sft"] = "sft"
    kl_to_base: NonNegative = 0.0
    """Weight of the divergence KL(base || tuned) at each learned token, with adapters alone."""


class Mlm(LanguageModel):
    """Masked tokens of documents (Devlin et al. 2018, section 3.1)."""

    type: Literal["mlm"] = "mlm"
    rate: Rate = 0.15
    """Share of the tokens that is predicted."""
    hidden: Share = 0.8
    """Share of these for which the mask token stands."""
    random: Share = 0.1
    """Share of these for which a random token stands; the rest stays as it is."""
    unit: Literal["token", "word", "span"] = "token"
    """What is masked together: nothing, whole words, or spans of them (Joshi et al. 2020)."""
    rows: Literal["full", "packed", "padded", "pairs"] = "full"
    """What a row holds: a stretch of all documents after one another (Liu et al. 2019); several
    documents, which do not see each other; one; or one in two parts, as in BERT."""

    @model_validator(mode="after")
    def _shares(self) -> "Mlm":
        hidden, random = vars(self)["hidden"], vars(self)["random"]
        if hidden + random > 1:
            raise ValueError(
                f"hidden={hidden:g} and random={random:g} are more than all that is masked; use "
                f"random={1 - hidden:g} or less"
            )
        return self


class Contrastive(Section):
    """Embeddings: texts that belong together are near each other, the others of the batch far."""

    type: Literal["contrastive"] = "contrastive"
    temperature: Positive = 0.05
    """What the cosines are divided by."""
    pool: Literal["mean", "first", "last"] | None = None
    """What of a text's tokens embeds it; left out, an encoder's mean, a decoder's last."""
    symmetric: bool = False
    """Learn to find the anchor of each positive too."""
    negatives: Whole = 1
    """Most hard negatives of an example, the first ones."""
    columns: Names = ()
    """The columns of an anchor, of what belongs to it and, where there are, of hard negatives,
    texts or lists of them; left out, they are found."""

    @model_validator(mode="after")
    def _two(self) -> "Contrastive":
        if len(columns := vars(self)["columns"]) == 1:
            raise ValueError(
                f"columns={columns[0]} is an anchor without a positive; name two, or write it twice"
            )
        return self


class Denoising(LanguageModel):
    """What all that make a source and its target of documents have."""

    rows: Literal["full", "packed", "padded"] = "full"
    """What a row holds: a stretch of all documents after one another (Raffel et al. 2020); several
    documents, each with its own target, which do not see each other; or one."""


class SpanCorruption(Denoising):
    """Spans of documents, which sentinels stand for (Raffel et al. 2020, section 3.1.4)."""

    type: Literal["span_corruption"] = "span_corruption"
    rate: Rate = 0.15
    """Share of the tokens that are in a span."""
    span: Stretch = 3.0
    """Mean length of a span in tokens."""


class Bart(Denoising):
    """Documents that were corrupted (Lewis et al. 2019, section 2.2)."""

    type: Literal["bart"] = "bart"
    infill: Beta = 0.3
    """Share of the tokens that spans cover, their lengths Poisson's of mean 3, with one mask each.
    """
    permute: bool = True
    """Sentences change places."""
    mask: Beta = 0.0
    """Share of the tokens that are masked one by one."""
    delete: Beta = 0.0
    """Share of the tokens that are removed."""
    rotate: Share = 0.0
    """The chance that a document starts at another token."""


class Denoiser(Section):
    """One of a mixture (Tay et al. 2022, section 3.1)."""

    mode: Literal["R", "S", "X"]
    """R and X are span corruption, X the one where much is missing; S gives the end for the
    beginning."""
    rate: Rate
    """Share of the tokens that is the target, with S in the mean."""
    span: Stretch = 3.0
    """Mean length of a span in tokens; with S there is none."""


class Modes(Section):
    """The special token that comes before the source, by the denoiser's mode."""

    R: str | None = None
    """Of R."""
    S: str | None = None
    """Of S."""
    X: str | None = None
    """Of X."""


class Ul2(Denoising):
    """A mixture of denoisers (Tay et al. 2022)."""

    type: Literal["ul2"] = "ul2"
    denoisers: Annotated[tuple[Denoiser, ...], BeforeValidator(many), Field(min_length=1)] = (
        Denoiser(mode="R", rate=0.15, span=3),
        Denoiser(mode="R", rate=0.15, span=8),
        Denoiser(mode="S", rate=0.25),
        Denoiser(mode="X", rate=0.5, span=3),
        Denoiser(mode="X", rate=0.5, span=8),
        Denoiser(mode="X", rate=0.15, span=64),
        Denoiser(mode="X", rate=0.5, span=64),
    )
    """Of which each text meets one, each as likely; left out, the paper's seven (table 1)."""
    modes: Modes = Modes()


class Seq2seq(LanguageModel):
    """The target that belongs to a source (Sutskever et al. 2014), by an encoder-decoder."""

    type: Literal["seq2seq"] = "seq2seq"
    source: Names = ()
    """The columns of a source, one after the other, a line each; left out, they are found."""
    target: str | None = None
    """The column of its target; left out, it is found."""
    target_length: Count | None = None
    """Most tokens of a target, and of all in a row; left out, `length`, which sources have."""

    @model_validator(mode="after")
    def _both(self) -> "Seq2seq":
        source, target = vars(self)["source"], vars(self)["target"]
        if bool(source) != (target is not None):
            have, lacks = ("source", "target") if source else ("target", "source")
            what = f"{have} is there and {lacks} is not; name objective.{lacks} too"
            raise ValueError(f"{what}, or leave both out")
        return self


class PrefixLm(Denoising):
    """What comes after a beginning of any length (Raffel et al. 2020, section 3.2.1)."""

    type: Literal["prefix_lm"] = "prefix_lm"


Weights = Annotated[
    Literal["balanced"] | tuple[Positive, ...],
    BeforeValidator(
        lambda value: tuple(value) if isinstance(value, list) else value,
        json_schema_input_type=Literal["balanced"] | tuple[Positive, ...],
    ),
]


class Labels(Section):
    """What all that predict labels have. Their names and class_weights are found in the training
    data where they are not given, before the run begins.
    """

    labels: Names = ()
    """The labels' names, in the order of their ids; left out, those of the base, or of the training
    data in order."""
    label: str | None = None
    """The column of labels; left out, it is found."""
    label_smoothing: Beta = 0.0
    """Share of the target that all labels have alike (Szegedy et al. 2016, section 7)."""
    class_weights: Weights | None = None
    """What each label's examples weigh, in the order of labels; balanced: one over how many they
    are, so that each label weighs the same in all."""

    @model_validator(mode="after")
    def _each_once(self) -> "Labels":
        f = vars(self)
        if wrong := _wrong_labels(f["labels"], f["class_weights"]):
            raise ValueError(wrong)
        return self

    def labeled(self, names: tuple[str, ...]) -> Self:
        """With these labels. Raises ConfigError for too many, and for weights of another number."""
        if wrong := _wrong_labels(names, self.class_weights):
            raise ConfigError("objective", wrong)
        return self.model_copy(update={"labels": names})


def _wrong_labels(names: tuple[str, ...], weights: Any) -> str:
    """What is wrong with labels of these names and class_weights, if anything is."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        return f"labels names {twice[0]} twice; name each label once"
    if len(names) > MOST_LABELS:
        most = f"labels has {len(names):,} names, and at most {MOST_LABELS:,} can be told apart"
        return f"{most}; is objective.label the column of labels?"
    if names and isinstance(weights, tuple) and len(weights) != len(names):
        what = f"class_weights has {len(weights)} numbers for {len(names)} labels"
        return f"{what}; give one for each, or balanced"
    return ""


class Classification(Labels):
    """The label of a text, or of a pair of texts."""

    type: Literal["classification"] = "classification"
    problem: Literal["single", "multi", "regression"] = "single"
    """One label; any number of them, each by itself; or a number."""
    text: str | None = None
    """The column of texts; left out, it is found."""
    pair: str | None = None
    """The column of second texts; left out, it is found."""

    @model_validator(mode="after")
    def _of_one_label(self) -> "Classification":
        f = vars(self)
        odd = [key for key in ("label_smoothing", "class_weights") if f[key]]
        if odd and f["problem"] != "single":
            raise ValueError(f"{odd[0]} is of problem=single, not {f['problem']}; leave it out")
        if f["pair"] and not f["text"]:
            raise ValueError(f"pair={f['pair']} needs the column beside it; add text")
        return self


class TokenClassification(Labels):
    """The label of each word."""

    type: Literal["token_classification"] = "token_classification"
    words: str | None = None
    """The column of lists of words; left out, it is found."""


Objective = Annotated[
    Clm
    | Sft
    | Mlm
    | SpanCorruption
    | Bart
    | Ul2
    | PrefixLm
    | Seq2seq
    | Classification
    | TokenClassification
    | Contrastive,
    Field(discriminator="type"),
]

HEADLESS = ("contrastive",)
"""Objectives that learn from hidden states: the head that scores ids takes no part."""

APART = ("contrastive", "seq2seq", "classification", "token_classification")
"""Objectives that learn from records alone: no documents stand among their rows."""

READERS: dict[str, tuple[str, ...]] = {
    "template": ("sft",),
    "learn": ("sft",),
    "overlong": ("sft", "seq2seq", "classification", "token_classification", "contrastive"),
    "packing": ("sft", "seq2seq", "classification", "token_classification"),
}
"""Which objectives read a key of `examples`."""
