"""The keys of each objective: what is learned."""

from typing import Annotated, Literal

from pydantic import Field

from jaxlm.config.values import NonNegative
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


Objective = Annotated[Clm | Sft, Field(discriminator="type")]

READERS: dict[str, tuple[str, ...]] = {
    "template": ("sft",),
    "learn": ("sft",),
    "overlong": ("sft",),
    "packing": ("sft",),
}
"""Which objectives read a key of `examples`."""
