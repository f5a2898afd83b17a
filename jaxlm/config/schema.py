"""Every key of a run, with its meaning where it stands.

A test holds the number of keys (without `model.*`) to 75 and fails on one that no code reads.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from jaxlm.core.section import Section
from jaxlm.models.spec import ModelSpec

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _many(value: Any) -> Any:
    """One item where a list is meant is a list of one; YAML's lists become tuples."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return value if value is None else (value,)


Patterns = Annotated[tuple[str, ...], BeforeValidator(_many)]


class Source(Section):
    """Where documents come from. A plain string is its path."""

    path: str
    """File, folder or glob of .txt, .jsonl (.gz, .zst) or .parquet; gs:// and s3:// with their
    extras; or `stdlib`, the source of Python's own standard library on this machine."""
    weight: Positive | None = None
    """Share of the rows that come from here, against the other sources; left out, by size."""
    field: str = "text"
    """The column of .jsonl and .parquet records that holds the text."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


Sources = Annotated[tuple[Source, ...], BeforeValidator(_many), Field(min_length=1)]


def _share_or_sources(value: Any) -> Any:
    return value if value is None or isinstance(value, float | int) else _many(value)


class Data(Section):
    """What is trained on, and what is held out."""

    train: Sources
    """One source or a list; with weights, a mixture."""
    validation: Annotated[
        Annotated[float, Field(gt=0, lt=1)] | tuple[Source, ...] | None,
        BeforeValidator(_share_or_sources),
    ] = None
    """Sources of their own, or the share of the training documents to hold out (by a hash of their
    text, so that a copy of a held-out document is held out too)."""
    parse_special: bool = False
    """Let text such as `<|endoftext|>` inside a document become the special token."""
    cache: str | None = None
    """Folder of the tokenized cache; left out, the user's cache folder."""


class Tokenizer(Section):
    """The tokenizer: one that exists, or one trained from the training data."""

    path: str | None = None
    """A tokenizer.json, a SentencePiece .model, or a folder with one."""
    type: Literal["bpe", "sentencepiece"] = "bpe"
    """What to train when there is no path: byte-level BPE or SentencePiece (unigram)."""
    vocab: Annotated[int, Field(ge=257)] = 8192
    """Number of ids to train."""


class Objective(Section):
    """What is learned."""

    type: Literal["clm"] = "clm"
    """clm: the next token."""
    z_loss: NonNegative = 0.0
    """Weight of log(Z)^2, which keeps the logits' scale (Chowdhery et al. 2022, section 5)."""


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

Axis = Annotated[int, Field(ge=-1)]


class Mesh(Section):
    """How many devices each axis has. One axis may be -1: what is left."""

    data: Axis = 1
    """Copies of the model, each with its share of the batch."""
    fsdp: Axis = -1
    """Shards of the parameters, each with its share of the batch too (Rajbhandari et al. 2020)."""
    tensor: Axis = 1
    """Shards of heads, MLP and vocabulary (Shoeybi et al. 2019)."""


class Lora(Section):
    """Low-rank adapters beside the kernels (Hu et al. 2021)."""

    rank: Whole = 0
    """0 adds none."""
    alpha: Positive = 16.0
    """The adapter's product is multiplied by alpha / rank."""
    targets: Patterns = ("attn/(q|k|v|o)/kernel",)
    """Names of the kernels that get one, as regular expressions."""


class Checkpoint(Section):
    """When the run is saved, and what is kept. The last step is always saved."""

    every: Whole = 500
    """Steps; 0 saves the last step alone."""
    keep: Count = 2
    """Newest checkpoints kept."""
    keep_every: Whole = 0
    """Checkpoints of steps that are a multiple of this are kept too."""
    keep_best: bool = False
    """Keep the one with the lowest validation loss too."""


class Log(Section):
    """What is written while training."""

    every: Count = 10
    """Steps per row of metrics.jsonl."""
    trackers: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...], BeforeValidator(_many)
    ] = ()
    """Where rows go besides metrics.jsonl."""


class Evaluate(Section):
    """When the validation data is scored. The last step always is."""

    every: Whole = 500
    """Steps; 0 scores the last step alone."""
    batches: Count = 50
    """Most batches of validation data per evaluation."""


class Profile(Section):
    """A trace for the JAX profiler."""

    steps: Annotated[str, Field(pattern=r"^\d+:\d+$")] | None = None
    """`A:B` traces steps A to B, without B, into the run's `profile/`."""


class RunConfig(Section):
    """One run."""

    name: Name = "run"
    """Names the run; its folder is `runs/NAME` unless run_dir says otherwise."""
    seed: Whole = 0
    """Root of every random choice: weights, dropout, order of the data."""
    steps: Count | None = None
    """Updates in all."""
    epochs: Positive | None = None
    """Passes over the training data, instead of steps."""
    batch: Count = 8
    """Sequences per update, over all devices."""
    length: Count = 512
    """Tokens per sequence."""
    microbatches: Count = 1
    """Parts that the batch is computed in, one after the other, to save memory."""
    run_dir: str | None = None
    """Folder of the run; left out, `runs/NAME`."""
    init: str | None = None
    """A run whose weights this one starts from; left out, from random ones."""
    trainable: Patterns = (".",)
    """Names of the parameters that are trained, as regular expressions; the rest is frozen."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations and products; auto is bfloat16 on accelerators, float32 on the CPU."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the trained parameters are stored."""
    deterministic: bool = False
    """Ask the GPU's compiler for deterministic kernels: slower, equal bits run after run."""
    platform: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where to run; auto refuses to fall back to the CPU on a machine with an accelerator."""
    model: ModelSpec = ModelSpec()
    data: Data
    tokenizer: Tokenizer = Tokenizer()
    objective: Objective = Objective()
    optimizer: Optimizer = AdamW()
    mesh: Mesh = Mesh()
    lora: Lora = Lora()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    evaluate: Evaluate = Evaluate()
    profile: Profile = Profile()

    @model_validator(mode="after")
    def _one_run(self) -> "RunConfig":
        f = vars(self)
        if (f["steps"] is None) == (f["epochs"] is None):
            raise ValueError("give steps or epochs, one of them")
        if f["batch"] % f["microbatches"]:
            raise ValueError(
                f"batch={f['batch']} does not split into microbatches={f['microbatches']}; "
                f"use a multiple of {f['microbatches']} or microbatches=1"
            )
        return self

    @property
    def folder(self) -> str:
        """Where the run lies."""
        return self.run_dir or f"runs/{self.name}"
