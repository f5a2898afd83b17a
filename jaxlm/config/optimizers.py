"""The keys of each optimizer and each learning-rate schedule."""

from typing import Annotated, Literal

from pydantic import Field

from jaxlm.config.values import Beta, Count, NonNegative, Patterns, Positive, Share, Whole
from jaxlm.core.section import Section


class Constant(Section):
    """The rate stays."""

    type: Literal["constant"] = "constant"
    warmup: Whole = 0
    """Steps of linear warm-up."""


class Linear(Section):
    """The rate falls on a line to the last step."""

    type: Literal["linear"] = "linear"
    warmup: Whole = 0
    """Steps of linear warm-up."""
    final: Share = 0.0
    """The last rate as a share of the peak."""


class Cosine(Linear):
    """The rate falls on half a cosine to the last step (Loshchilov & Hutter 2017)."""

    type: Literal["cosine"] = "cosine"
    final: Share = 0.1
    """The last rate as a share of the peak."""


class WarmupStableDecay(Linear):
    """The rate stays, then falls on a line over the last `decay` of the steps (Hu et al. 2024)."""

    type: Literal["wsd"] = "wsd"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the steps over which the rate falls."""


class InverseSquareRoot(Constant):
    """The rate falls as 1 / sqrt(step) after the warm-up (Vaswani et al. 2017, section 5.3)."""

    type: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup: Count = 1000
    """Steps of linear warm-up; also the time scale of the fall."""


Schedule = Annotated[
    Constant | Linear | Cosine | WarmupStableDecay | InverseSquareRoot, Field(discriminator="type")
]


class OptimizerBase(Section):
    """What every optimizer has."""

    learning_rate: Positive = 3e-4
    """The peak rate."""
    schedule: Schedule = Cosine()
    weight_decay: NonNegative = 0.1
    """Decoupled, multiplied by the rate."""
    no_decay: Patterns = ("norm", "bias$", "embedding$")
    """Names of parameters that do not decay, as regular expressions."""
    clip: Positive | None = 1.0
    """Largest global norm of the gradient; null does not clip."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the first moment is stored."""
    max_skipped: Count = 5
    """Steps in a row with a NaN or infinite gradient after which the run ends with exit code 5."""


class AdamW(OptimizerBase):
    """Loshchilov & Hutter 2019."""

    type: Literal["adamw"] = "adamw"
    b1: Beta = 0.9
    """Decay of the first moment."""
    b2: Beta = 0.95
    """Decay of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""


class Lion(OptimizerBase):
    """Chen et al. 2023. Wants a rate 3 to 10 times lower than AdamW."""

    type: Literal["lion"] = "lion"
    b1: Beta = 0.9
    """Weight of the momentum in the update."""
    b2: Beta = 0.99
    """Decay of the momentum."""


class Adafactor(OptimizerBase):
    """Shazeer & Stern 2018: the second moment as rows and columns."""

    type: Literal["adafactor"] = "adafactor"
    b1: Beta | None = None
    """Decay of the first moment; null keeps none."""


class Muon(OptimizerBase):
    """Jordan et al. 2024: orthogonalised momentum for matrices, AdamW for the rest."""

    type: Literal["muon"] = "muon"
    momentum: Beta = 0.95
    """Decay of the matrices' momentum."""
    b1: Beta = 0.9
    """First moment of the AdamW that the other parameters get."""
    b2: Beta = 0.95
    """Second moment of the AdamW that the other parameters get."""


class ScheduleFreeAdamW(OptimizerBase):
    """Defazio et al. 2024: an average in place of a schedule, which must be constant."""

    type: Literal["schedule_free_adamw"] = "schedule_free_adamw"
    schedule: Constant = Constant()  # pyright: ignore[reportIncompatibleVariableOverride]
    b1: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Weight of the average where the gradient is taken."""
    b2: Beta = 0.95
    """Decay of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""


Optimizer = Annotated[
    AdamW | Lion | Adafactor | Muon | ScheduleFreeAdamW, Field(discriminator="type")
]
