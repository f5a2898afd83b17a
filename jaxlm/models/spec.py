"""The architecture of a model as data: every choice that changes the computation, and no other.

Dims used throughout: B batch, L length, D embed, F mlp, N heads, K kv heads, H head_dim, V vocab.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxlm.core.section import Section

Count = Annotated[int, Field(ge=1, lt=2**31)]
Whole = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]

VOCAB_MULTIPLE = 128
"""The embedding's rows are padded to a multiple of this, so that they divide over any mesh."""


class Rope(Section):
    """Rotary positions (Su et al. 2021, section 3.2.2), in Hugging Face's rotate-half layout."""

    theta: Annotated[float, Field(gt=0)] = 10000.0
    """The base of the wave lengths."""
    scaling: Literal["none", "llama3"] = "none"
    """How wave lengths stretch beyond the trained length; llama3 is Grattafiori et al. 2024."""
    factor: Annotated[float, Field(ge=1)] = 8.0
    """By how much the longest wave lengths are stretched."""
    low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    """Wave lengths over original_length / this are stretched whole."""
    high_freq_factor: Annotated[float, Field(gt=0)] = 4.0
    """Wave lengths under original_length / this are not stretched."""
    original_length: Count = 8192
    """The length that the model was first trained for."""


class Norm(Section):
    """The normalisation before each part of a block and at the end."""

    type: Literal["rms", "layer"] = "rms"
    """rms (Zhang & Sennrich 2019) has a scale; layer (Ba et al. 2016) a scale and a bias."""
    eps: Annotated[float, Field(gt=0)] = 1e-5
    """Added to the variance."""


class Bias(Section):
    """Which projections have a bias."""

    qkv: bool = False
    """Queries, keys and values."""
    out: bool = False
    """The attention's output."""
    mlp: bool = False
    """Every projection of the MLP."""


class ModelSpec(Section):
    """One transformer. `vocab`, `kv_heads`, `head_dim`, `mlp` and `max_length` may be left at 0."""

    vocab: Whole = 0
    """Number of token ids; 0 is the tokenizer's."""
    layers: Count = 4
    """Blocks in the stack."""
    embed: Count = 256
    """Width of the residual stream, D."""
    heads: Count = 4
    """Query heads, N."""
    kv_heads: Whole = 0
    """Key and value heads, K; 0 is as many as heads. Fewer is grouped-query attention."""
    head_dim: Whole = 0
    """Width of one head, H; 0 is embed / heads."""
    mlp: Whole = 0
    """Hidden width of the MLP, F; 0 is 4 x embed (8/3 x embed when gated, in eights)."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    """The MLP's nonlinearity; gelu is the exact one, gelu_tanh its approximation."""
    gated: bool = True
    """Multiply the activation with a second projection (Shazeer 2020)."""
    norm: Norm = Norm()
    positions: Literal["rope", "learned", "none"] = "rope"
    """How positions enter: rotary in each attention, or a learned table added to the embedding."""
    max_length: Whole = 0
    """Longest sequence the positions cover; 0 is the run's length."""
    rope: Rope = Rope()
    tied: bool = True
    """The head is the embedding's transpose."""
    bias: Bias = Bias()
    dropout: Share = 0.0
    """Share of activations dropped in training, after the embedding and before each residual."""
    init_scale: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the initial weights; residual outputs are over sqrt(2 x layers)."""
    remat: Literal["none", "products", "full"] = "products"
    """What the backward pass computes again: nothing; what lies between matrix products and
    attention, which is nearly free; or every block."""
    attention: Literal["auto", "full", "chunked", "cudnn", "splash"] = "auto"
    """The attention kernel; auto is the fastest that is exact for this device and batch."""
    unroll: Count = 1
    """Blocks per iteration of the loop over layers: speed only, the parameters do not change."""

    @model_validator(mode="after")
    def _divides(self) -> "ModelSpec":
        f = vars(self)
        if not f["head_dim"] and f["embed"] % f["heads"]:
            raise ValueError(
                f"embed={f['embed']} does not split over heads={f['heads']}; set head_dim"
            )
        if f["kv_heads"] and f["heads"] % f["kv_heads"]:
            raise ValueError(f"heads={f['heads']} is not a multiple of kv_heads={f['kv_heads']}")
        head_dim = f["head_dim"] or f["embed"] // f["heads"]
        if f["positions"] == "rope" and head_dim % 2:
            raise ValueError(f"head_dim={head_dim} is odd; rotary positions need an even one")
        if f["layers"] % f["unroll"]:
            raise ValueError(f"layers={f['layers']} is not a multiple of unroll={f['unroll']}")
        return self

    def filled(self, *, vocab: int, max_length: int) -> "ModelSpec":
        """Set every field that may be left out, from a tokenizer's vocab and a run's length."""
        embed, heads = self.embed, self.heads
        mlp = self.mlp or (-(-embed * 8 // 3 // 8) * 8 if self.gated else 4 * embed)
        return self.model_copy(
            update={
                "vocab": self.vocab or vocab,
                "kv_heads": self.kv_heads or heads,
                "head_dim": self.head_dim or embed // heads,
                "mlp": mlp,
                "max_length": self.max_length or max_length,
            }
        )
