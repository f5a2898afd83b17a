"""The keys of each objective: what is learned."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxlm.config.values import NonNegative, Share
from jaxlm.core.section import Section


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
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
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


Objective = Annotated[Clm | Sft | Mlm, Field(discriminator="type")]

READERS: dict[str, tuple[str, ...]] = {
    "template": ("sft",),
    "learn": ("sft",),
    "overlong": ("sft",),
    "packing": ("sft",),
}
"""Which objectives read a key of `examples`."""
