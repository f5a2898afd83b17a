"""Every key of a run, with its meaning where it stands.

A test holds the number of keys that a run of one objective may have (without `model.*`) to 90, and
fails on one that no code reads.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from jaxlm.config.objectives import APART, READERS, Clm, Objective
from jaxlm.config.optimizers import AdamW, Optimizer
from jaxlm.config.values import (
    Beta,
    Count,
    Name,
    Patterns,
    Positive,
    Seed,
    Trainable,
    Whole,
    many,
)
from jaxlm.core.section import Section
from jaxlm.models.spec import ModelSpec


class Source(Section):
    """Where documents come from. A plain string is its path."""

    path: str
    """File, folder or glob of .txt, .jsonl (.gz, .zst) or .parquet; gs:// and s3:// with their
    extras; a folder that `jaxlm data tokenize` made; or `stdlib`, the source of Python's own
    standard library on this machine (as examples: what its functions are for, and the lines that
    begin them; as labeled words: its tokens and their kinds)."""
    weight: Positive | None = None
    """Share of the rows that come from here, against the other sources; left out, by size."""
    field: str = "text"
    """The column of .jsonl and .parquet records that holds the text."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


Sources = Annotated[
    tuple[Source, ...],
    BeforeValidator(many, json_schema_input_type=str | Source | tuple[str | Source, ...]),
    Field(min_length=1),
]


def _share_or_sources(value: Any) -> str:
    return "share" if isinstance(value, float | int) else "sources"


class Data(Section):
    """What is trained on, and what is held out."""

    train: Sources
    """One source or a list; with weights, a mixture."""
    validation: (
        Annotated[
            Annotated[float, Field(gt=0, lt=1), Tag("share")] | Annotated[Sources, Tag("sources")],
            Discriminator(_share_or_sources),
        ]
        | None
    ) = None
    """Sources of their own, or the share of the training documents to hold out (by a hash of their
    text, so that a copy of a held-out document is held out too)."""
    replay: Source | None = None
    """Documents mixed in so that they are not forgotten; `weight` is their share of the rows."""
    parse_special: bool = False
    """Let text such as `<|endoftext|>` inside a document become the special token."""
    cache: str | None = None
    """Folder of the tokenized cache; left out, the user's cache folder."""

    @model_validator(mode="after")
    def _replayed(self) -> "Data":
        if (again := vars(self)["replay"]) and not 0 < (vars(again)["weight"] or 0) < 1:
            raise ValueError(
                f"replay needs its share of the rows; write {{path: {vars(again)['path']}, "
                "weight: 0.05}"
            )
        return self


class Tokenizer(Section):
    """The tokenizer: one that exists, or one trained from the training data."""

    path: str | None = None
    """A tokenizer.json, a SentencePiece .model, a folder with one, or hf://ORG/NAME@REVISION.
    Beside `init`, one that adds tokens to its own."""
    type: Literal["bpe", "sentencepiece"] = "bpe"
    """What to train when there is no path: byte-level BPE or SentencePiece (unigram)."""
    vocab: Annotated[int, Field(ge=257)] = 8192
    """Number of ids to train."""


class Examples(Section):
    """How records become examples, for the objectives that learn from examples."""

    template: Literal["chatml", "llama3", "mistral", "alpaca", "plain"] | None = None
    """How a chat or an instruction is written; left out, the tokenizer's own chat template."""
    learn: Literal["responses", "last", "all"] = "responses"
    """Which tokens: the assistant's answers, with what ends them; the last answer; or all. An
    answer with `"train": false` is not learned, but in `all`."""
    overlong: Literal["error", "truncate-right", "truncate-left", "drop"] = "error"
    """What happens to an example longer than a row: refuse the run, keep its first or its last
    `length` tokens, or leave it out."""
    packing: bool = True
    """Several examples in a row, which do not see each other; else one, in rows as long as the
    longest of the batch."""


Axis = Annotated[int, Field(ge=-1)]


class Mesh(Section):
    """How many devices each axis has. One axis may be -1: what is left."""

    data: Axis = 1
    """Copies of the model, each with its share of the batch."""
    fsdp: Axis = -1
    """Shards of the parameters, each with its share of the batch too (Rajbhandari et al. 2020)."""
    expert: Axis = 1
    """Shards of a sparse model's experts (Lepikhin et al. 2020); of all else as fsdp."""
    tensor: Axis = 1
    """Shards of heads, MLP and vocabulary (Shoeybi et al. 2019)."""
    slices: Whole = 0
    """Equal groups of devices with a fast network within, over which outer axes cross first; 0: as
    the devices say, else each host is one; 1: all devices are alike."""

    @model_validator(mode="after")
    def _one_open(self) -> "Mesh":
        sizes = {name: size for name, size in vars(self).items() if name != "slices"}
        if empty := [name for name, size in sizes.items() if size == 0]:
            raise ValueError(f"{empty[0]}=0 holds no device; use 1, or -1 for what is left")
        if list(sizes.values()).count(-1) > 1:
            given = " ".join(f"{name}={size}" for name, size in sizes.items() if size == -1)
            raise ValueError(f"{given}: only one axis may be -1")
        return self


class Lora(Section):
    """Low-rank adapters beside the kernels (Hu et al. 2021)."""

    rank: Whole = 0
    """0 adds none."""
    alpha: Positive = 16.0
    """The adapter's product is multiplied by alpha / rank."""
    targets: Patterns = ("attention",)
    """The kernels that get one: attention, mlp (and experts), all-linear, or patterns of names."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (Kalajdzievski 2023)."""
    dora: bool = False
    """Learn each output's magnitude beside its direction (Liu et al. 2024)."""
    dropout: Beta = 0.0
    """Share of the adapters' input that is dropped while training."""
    b_rate: Positive = 1.0
    """Rate of the B matrices as a multiple of the others' (LoRA+, Hayou et al. 2024)."""
    init: Literal["default", "pissa", "loftq"] = "default"
    """default: B is 0; pissa: the kernel's first singular vectors (Meng et al. 2024); loftq: those
    of what quantization lost of it (Li et al. 2023), with frozen_dtype int8 or nf4."""
    save: Patterns = ()
    """What is trained beside the adapters, named as in `trainable`: embeddings, head, new_rows."""


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


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Log(Section):
    """What is written while training."""

    every: Count = 10
    """Steps per row of metrics.jsonl."""
    trackers: Annotated[
        tuple[Tracker, ...],
        BeforeValidator(many, json_schema_input_type=Tracker | tuple[Tracker, ...]),
    ] = ()
    """Where rows go besides metrics.jsonl."""


class Evaluate(Section):
    """When the run is scored. Its last step always is, and before the first what `init` names."""

    every: Whole = 500
    """Steps; 0 scores the last step alone."""
    batches: Count = 50
    """Most batches of validation data per evaluation."""
    general: Source | None = Source.model_construct(set(), path="stdlib")
    """Documents of which a few are scored too where there is an `init`: how much of what it knew is
    forgotten. null scores none."""
    max_forgetting: Positive | None = None
    """The run ends when the loss on `general` has grown by more than this, in nats per token."""


Metric = Literal["exact", "rouge_l", "chrf"]


class Samples(Section):
    """What the model answers at each evaluation."""

    prompts: str | None = None
    """A file of examples, whose answers may be missing; a .txt with a prompt in each line; or
    `validation`: what a run on examples or of seq2seq holds out."""
    count: Count = 16
    """Most prompts, the first ones."""
    tokens: Count = 64
    """Most tokens of an answer."""
    beams: Count = 1
    """Beams of the search for an answer; 1 is greedy."""
    length_penalty: Annotated[float, Field(ge=-5, le=5)] = 1.0
    """Larger is for longer answers: beams are ranked by their log-probability over
    length ** length_penalty."""
    match: str | None = None
    """When an answer is right: exact, json, json:FIELD, xml, xml:TAG or regex:PATTERN, against what
    is expected, if anything is."""
    json_schema: str | None = None
    """A file with the JSON schema that answers fit."""
    metrics: Annotated[tuple[Metric, ...], BeforeValidator(many)] = ()
    """How near answers are to what is expected: exact, rouge_l or chrf; the last two need
    jaxlm[metrics]."""

    @model_validator(mode="after")
    def _searched(self) -> "Samples":
        f = vars(self)
        if f["beams"] == 1 and f["length_penalty"] != 1:
            what = "is of beam search; add samples.beams=4, or leave it out"
            raise ValueError(f"length_penalty={f['length_penalty']:g} {what}")
        return self


class Profile(Section):
    """A trace for the JAX profiler."""

    steps: Annotated[str, Field(pattern=r"^\d+:\d+$")] | None = None
    """`A:B` traces steps A to B, without B, into the run's `profile/`."""

    @model_validator(mode="after")
    def _forward(self) -> "Profile":
        if window := vars(self)["steps"]:
            first, last = map(int, window.split(":"))
            if first >= last:
                raise ValueError(f"steps={window} is empty; write the smaller step first")
        return self


def _check_tuning(lora: Lora, evaluate: Evaluate, init: str | None) -> None:
    """Raise ValueError for what would train everything, or stop at nothing, without a word."""
    f, asked, plain = vars(lora), lora.model_fields_set, vars(Lora())
    if "rank" not in asked and (odd := sorted(key for key in asked if f[key] != plain[key])):
        what = "is of adapters; add lora.rank=16, or leave it out"
        raise ValueError(f"lora.{odd[0]}={json.dumps(f[odd[0]])} {what}")
    most, general = vars(evaluate)["max_forgetting"], vars(evaluate)["general"]
    if most and (not init or general is None):
        what = f"needs {'evaluate.general' if init else 'init'}; add it, or leave this out"
        raise ValueError(f"evaluate.max_forgetting={most:g} {what}")


def _check_examples(examples: Examples, objective: str) -> None:
    """Raise ValueError for a key of examples that the objective does not read."""
    plain = vars(Examples())
    set_ = [key for key, value in vars(examples).items() if value != plain[key]]
    if odd := [key for key in set_ if objective not in READERS[key]]:
        readers = " or ".join(READERS[odd[0]])
        raise ValueError(f"examples.{odd[0]} is of objective.type={readers}; leave it out")


def _check_replay(data: Data, objective: str) -> None:
    """Raise ValueError for documents beside what the objective learns from."""
    if vars(data)["replay"] and objective in APART:
        what = f"replays documents, which objective.type={objective} does not learn from"
        raise ValueError(f"data.replay {what}; leave it out")


class RunConfig(Section):
    """One run."""

    name: Name = "run"
    """Names the run; its folder is `runs/NAME` unless run_dir says otherwise."""
    seed: Seed = 0
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
    """What this run's weights start from: a run, an import, a Hugging Face folder, or
    hf://ORG/NAME@REVISION; left out, random ones."""
    trainable: Trainable | None = None
    """What is trained; the rest is frozen. Regular expressions over the parameters' names, or the
    words lora, head, norms, embeddings, new_rows (of ids that the tokenizer adds to those of init),
    attention, mlp, biases and `last_layers: N`. Left out: everything, or with lora.rank the
    adapters."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations and products; auto is bfloat16 on accelerators, float32 on the CPU."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """How parameters are stored, the frozen ones unless frozen_dtype says otherwise; adapters are
    float32."""
    frozen_dtype: Literal["auto", "float32", "bfloat16", "int8", "nf4"] = "auto"
    """How what is frozen of `init` is stored; auto: as param_dtype. int8 and nf4 are of the kernels
    of blocks; what else is frozen is bfloat16 then (Dettmers et al. 2023)."""
    deterministic: bool = False
    """Ask the GPU's compiler for deterministic kernels: slower, equal bits run after run."""
    watchdog: Positive = 3600.0
    """Seconds in which nothing is finished after which the run ends with exit code 124."""
    platform: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where to run; auto refuses to fall back to the CPU on a machine with an accelerator."""
    model: ModelSpec = ModelSpec()
    data: Data
    tokenizer: Tokenizer = Tokenizer()
    objective: Objective = Clm()
    examples: Examples = Examples()
    optimizer: Optimizer = AdamW()
    mesh: Mesh = Mesh()
    lora: Lora = Lora()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    evaluate: Evaluate = Evaluate()
    samples: Samples = Samples()
    profile: Profile = Profile()

    @model_validator(mode="after")
    def _one_run(self) -> "RunConfig":
        f = vars(self)
        if f["steps"] is None and f["epochs"] is None:
            raise ValueError("the run has no end; add steps=1000, or epochs=1")
        if f["steps"] is not None and f["epochs"] is not None:
            raise ValueError(f"steps={f['steps']} and epochs={f['epochs']:g} both end it; keep one")
        if f["batch"] % f["microbatches"]:
            raise ValueError(
                f"batch={f['batch']} does not split into microbatches={f['microbatches']}; "
                f"use a multiple of {f['microbatches']} or microbatches=1"
            )
        if f["frozen_dtype"] != "auto" and not f["init"]:
            what = "is how what is frozen of init is stored; add init, or leave it out"
            raise ValueError(f"frozen_dtype={f['frozen_dtype']} {what}")
        _check_tuning(f["lora"], f["evaluate"], f["init"])
        _check_examples(f["examples"], vars(f["objective"])["type"])
        _check_replay(f["data"], vars(f["objective"])["type"])
        for key in ("run_dir", "init"):
            away = f[key] and "://" in f[key]  # a Path would make a local folder named `gs:` of it
            if away and not (key == "init" and f[key].startswith("hf://")):
                raise ValueError(
                    f"{key}={f[key]} is not a local folder; mount the bucket and name its mount"
                )
        if f["run_dir"] and set(f["run_dir"]) & set("[]"):
            raise ValueError(
                f"run_dir={f['run_dir']} holds a bracket, which the arrays' files cannot have in "
                "their path; use another name"
            )
        longest = vars(f["model"])["max_length"]
        if longest and f["length"] > longest:
            raise ValueError(
                f"length={f['length']} is longer than model.max_length={longest}; "
                f"use length={longest} or less"
            )
        return self

    @property
    def folder(self) -> str:
        """Where the run lies."""
        return self.run_dir or f"runs/{self.name}"
