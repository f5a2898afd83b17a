"""The architecture of a model as data: every choice that changes the computation, and no other.

Dims used throughout: B batch, L length, D embed, F mlp, N heads, K kv heads, H head_dim, V vocab.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from jaxlm.core.section import Section

Count = Annotated[int, Field(ge=1, lt=2**31)]
Whole = Annotated[int, Field(ge=0, lt=2**31)]
Width = Annotated[int, Field(ge=1, lt=2**20)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # YAML's lists


Layers = Annotated[tuple[Whole, ...], BeforeValidator(_listed)]
Factors = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_listed)]

RUNTIME = ("dropout", "balance_loss", "router_z_loss", "remat", "attention", "unroll")
"""Fields that change no parameter."""
VOCAB_MULTIPLE = 128
"""The embedding's rows are padded to a multiple of this, so that they divide over any mesh."""


class Rope(Section):
    """Rotary positions (Su et al. 2021, section 3.2.2), in Hugging Face's rotate-half layout."""

    theta: Annotated[float, Field(gt=1)] = 10000.0
    """The base of the wave lengths."""
    local_theta: Annotated[float, Field(ge=0)] = 0.0
    """The base in layers with a window, which no scaling stretches; 0 is as in the others."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a head that turns, its first dimensions; the rest carries no position."""
    scaling: Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"] = "none"
    """How wave lengths stretch beyond original_length: all alike (Chen et al. 2023); by a larger
    base that grows with the sequence; by wave length (Grattafiori et al. 2024); by wave length with
    a temperature (Peng et al. 2023); by a factor for each (Ding et al. 2024)."""
    factor: Annotated[float, Field(ge=1)] = 8.0
    """By how much the longest wave lengths are stretched."""
    low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    """llama3: wave lengths over original_length / this are stretched whole."""
    high_freq_factor: Annotated[float, Field(gt=0)] = 4.0
    """llama3: wave lengths under original_length / this are not stretched."""
    beta_fast: Annotated[float, Field(gt=0)] = 32.0
    """yarn: what turns at least so often over original_length is not stretched."""
    beta_slow: Annotated[float, Field(gt=0)] = 1.0
    """yarn: what turns at most so often over original_length is stretched whole."""
    attention_factor: Annotated[float, Field(ge=0)] = 0.0
    """yarn, longrope: what queries and keys are multiplied by; 0 is the paper's, from `factor`."""
    short: Factors = ()
    """longrope: a factor per wave length in sequences up to original_length."""
    long: Factors = ()
    """longrope: a factor per wave length in longer sequences."""
    original_length: Count = 8192
    """The length that the model was first trained for."""

    @property
    def local(self) -> "Rope":
        """How the layers with a window turn."""
        if not self.local_theta:
            return self
        return self.model_copy(update={"theta": self.local_theta, "scaling": "none"})


class Norm(Section):
    """The normalisation around each part of a block and at the end."""

    type: Literal["rms", "layer"] = "rms"
    """rms (Zhang & Sennrich 2019) has a scale; layer (Ba et al. 2016) a scale and a bias."""
    bias: bool = True
    """Whether layer's has its bias."""
    eps: Annotated[float, Field(gt=0)] = 1e-5
    """Added to the variance."""
    place: Literal["before", "after", "both", "sum"] = "before"
    """Of the input of attention and MLP, of their output, or of both; or of the residual stream
    itself after each (Vaswani et al. 2017, section 3.1), and then not at the end."""
    shift: Annotated[float, Field(ge=0)] = 0.0
    """Added to every stored scale: 1 where scales are stored around zero."""
    qk: Literal["none", "head", "all"] = "none"
    """Queries and keys normalised too: each head by itself, or all heads of a token together."""


class Embedding(Section):
    """What is added to the tokens' embeddings, and their norm."""

    types: Whole = 0
    """Kinds of tokens, each with an embedding of its own (Devlin et al. 2018, section 3); 0: no."""
    offset: Whole = 0
    """The row of the learned positions that a sequence starts with; those before are not used."""
    norm: bool = False
    """The sum is normalized, and then not once more by a norm before the first attention."""


class Relative(Section):
    """Relative positions: a bias of each head's scores (Raffel et al. 2020, section 2.1)."""

    buckets: Annotated[int, Field(ge=4, lt=2**20, multiple_of=4)] = 32
    """How many distances are told apart."""
    distance: Count = 128
    """From here on all are one; up to it, near ones are told apart more finely."""


class Encoder(Section):
    """The stack that reads the source, of an encoder-decoder."""

    layers: Annotated[int, Field(ge=0, lt=2**20)] = 0
    """Its blocks; 0 is as many as the decoder's."""
    start: Whole = 0
    """The id that every target begins with."""


class Head(Section):
    """What lies between hidden states and scores."""

    labels: Whole = 0
    """Classes that are scored; 0 is the vocabulary."""
    pool: Literal["none", "first", "last", "mean"] = "none"
    """What is scored: every position, a sequence's first or last, or their mean."""
    transform: Literal["none", "silu", "gelu", "gelu_tanh", "relu", "tanh"] = "none"
    """A square projection with this nonlinearity before the scores, or none."""
    transform_bias: bool = True
    """Whether it has a bias."""
    norm: bool = False
    """Its output is normalized."""
    bias: bool = False
    """Scores have a bias."""


class Window(Section):
    """Layers that look at near positions only (Beltagy et al. 2020)."""

    size: Whole = 0
    """How many positions a query sees, itself included (in an encoder to either side); 0 is all."""
    full: Layers = ()
    """Layers, from 0, that see everything all the same."""


class Scale(Section):
    """Factors and caps on embeddings, scores and logits."""

    embed: Annotated[float, Field(gt=0)] = 1.0
    """What embeddings are multiplied by."""
    query: Annotated[float, Field(ge=0)] = 0.0
    """What scores are multiplied by; 0 is 1 / sqrt(head_dim)."""
    scores_cap: Annotated[float, Field(ge=0)] = 0.0
    """Scores s become cap x tanh(s / cap) (Bello et al. 2016); 0 leaves them."""
    logits_cap: Annotated[float, Field(ge=0)] = 0.0
    """The same for logits."""
    output: Annotated[float, Field(gt=0)] = 1.0
    """What the last hidden states are multiplied by."""


class Experts(Section):
    """A sparse MLP: each token goes through `chosen` of `count` (Shazeer et al. 2017)."""

    count: Whole = 0
    """MLPs per layer, each `mlp` wide; 0 is one dense MLP."""
    chosen: Count = 2
    """How many a token goes through."""
    normalized: bool = True
    """The chosen ones' weights sum to 1; else they are their share among all."""


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

    structure: Literal["decoder", "encoder", "encoder-decoder"] = "decoder"
    """What attends to what (Raffel et al. 2020, figure 4): each position to those before it, to
    all, or those of a target to those before them and to all of its source."""
    prefix: bool = False
    """A decoder's prompt sees all of itself, what comes after it what is before (ibid., prefix LM):
    in training where a batch says what its prompts are, in generation always."""
    vocab: Annotated[int, Field(ge=0, lt=2**26)] = 0
    """Number of token ids; 0 is the tokenizer's."""
    layers: Width = 4
    """Blocks in the stack."""
    encoder: Encoder = Encoder()
    embed: Width = 256
    """Width of the residual stream, D."""
    heads: Width = 4
    """Query heads, N."""
    kv_heads: Annotated[int, Field(ge=0, lt=2**20)] = 0
    """Key and value heads, K; 0 is as many as heads. Fewer is grouped-query attention."""
    head_dim: Annotated[int, Field(ge=0, lt=2**20)] = 0
    """Width of one head, H; 0 is embed / heads."""
    mlp: Annotated[int, Field(ge=0, lt=2**20)] = 0
    """Hidden width of the MLP, F; 0 is 4 x embed (8/3 x embed when gated, in eights)."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    """The MLP's nonlinearity; gelu is the exact one, gelu_tanh its approximation."""
    gated: bool = True
    """Multiply the activation with a second projection (Shazeer 2020)."""
    norm: Norm = Norm()
    embedding: Embedding = Embedding()
    positions: Literal["rope", "learned", "relative", "none"] = "rope"
    """How positions enter: rotary in each attention, a learned table added to the embedding, or
    biases of scores."""
    max_length: Whole = 0
    """Longest sequence the positions cover; 0 is the run's length."""
    rope: Rope = Rope()
    relative: Relative = Relative()
    window: Window = Window()
    scale: Scale = Scale()
    experts: Experts = Experts()
    parallel: bool = False
    """Attention and MLP read the same input, and both are added to it (Wang & Komatsuzaki 2021)."""
    tied: bool = True
    """The head is the embedding's transpose."""
    head: Head = Head()
    bias: Bias = Bias()
    dropout: Share = 0.0
    """Share of activations dropped in training, after the embedding and before each residual."""
    balance_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss that is least where all experts get as many tokens (Fedus et al. 2021, eq.
    4), of each microbatch by itself."""
    router_z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of log(Z)^2 of routers (Zoph et al. 2022, eq. 5), so that their scores stay small."""
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
            raise ValueError(
                f"heads={f['heads']} is not a multiple of kv_heads={f['kv_heads']}; "
                f"use kv_heads={math.gcd(f['heads'], f['kv_heads'])}"
            )
        head_dim = f["head_dim"] or f["embed"] // f["heads"]
        if f["positions"] == "rope" and head_dim % 2:
            raise ValueError(f"head_dim={head_dim} is odd; rotary positions need an even one")
        turning = int(head_dim * f["rope"].share) // 2
        if f["positions"] == "rope" and not turning:
            raise ValueError(
                f"rope.share={f['rope'].share:g} of head_dim={head_dim} turns nothing; "
                f"use {2 / head_dim:g} or more"
            )
        if f["rope"].scaling in ("yarn", "longrope") and f["rope"].original_length < 2:
            raise ValueError(
                f"rope.scaling={f['rope'].scaling} needs rope.original_length=2 or more"
            )
        if f["experts"].count and not (f["gated"] and not f["bias"].mlp):
            raise ValueError("experts are gated and have no bias; leave out gated and bias.mlp")
        if f["rope"].scaling == "longrope" and (
            len(f["rope"].short) != turning or len(f["rope"].long) != turning
        ):
            raise ValueError(f"rope.short and rope.long need {turning} factors each, one per wave")
        if f["experts"].count and f["experts"].chosen > f["experts"].count:
            raise ValueError(
                f"experts.chosen={f['experts'].chosen} is more than experts.count="
                f"{f['experts'].count}; use experts.chosen={f['experts'].count} or less"
            )
        if beyond := [layer for layer in f["window"].full if layer >= f["layers"]]:
            raise ValueError(
                f"window.full names layer {beyond[0]}; use layers from 0 to {f['layers'] - 1}"
            )
        depths = f["layers"], f["encoder"].layers
        if any(layers % f["unroll"] for layers in depths):
            raise ValueError(
                f"layers={max(depths)} is not a multiple of unroll={f['unroll']}; "
                f"use unroll={math.gcd(*depths, f['unroll'])}"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> "ModelSpec":
        """The parts of other structures, and of heads that others lack."""
        f = vars(self)
        if f["encoder"] != Encoder() and f["structure"] != "encoder-decoder":
            raise ValueError(
                "encoder.* is of an encoder-decoder; leave it out or use structure=encoder-decoder"
            )
        if f["prefix"] and (
            f["structure"] != "decoder" or f["window"].size or f["rope"].scaling == "longrope"
        ):
            raise ValueError("prefix is of a decoder without window and longrope; use false")
        if f["head"].norm and f["head"].transform == "none":
            raise ValueError("head.norm is of the transform; name one in head.transform")
        if f["head"].pool != "none" and not f["head"].labels:
            raise ValueError("head.pool is of classifiers; use head.labels=2 or more, or no pool")
        if f["relative"].distance <= f["relative"].buckets // 2:
            raise ValueError(
                f"relative.distance={f['relative'].distance} leaves no bucket for far ones; "
                f"use more than {f['relative'].buckets // 2}"
            )
        if f["parallel"] and (f["norm"].place == "sum" or f["structure"] == "encoder-decoder"):
            raise ValueError("parallel is of a decoder or an encoder with norms before; use false")
        return self

    def _encoder_filled(self) -> dict[str, int]:
        pair = self.structure == "encoder-decoder"
        return {"layers": self.encoder.layers or self.layers} if pair else {}

    def filled(self, *, vocab: int, max_length: int) -> "ModelSpec":
        """Set every field that may be left out, from a tokenizer's vocab and a run's length."""
        embed, heads = self.embed, self.heads
        mlp = self.mlp or (-(-embed * 8 // 3 // 8) * 8 if self.gated else 4 * embed)
        return self.model_copy(
            update={
                "vocab": self.vocab or vocab,
                "encoder": self.encoder.model_copy(update=self._encoder_filled()),
                "kv_heads": self.kv_heads or heads,
                "head_dim": self.head_dim or embed // heads,
                "mlp": mlp,
                "max_length": self.max_length or max_length,
            }
        )


def padded_vocab(spec: ModelSpec) -> int:
    """Rows of the embedding: the vocabulary up to the next multiple of VOCAB_MULTIPLE."""
    return -(-spec.vocab // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
