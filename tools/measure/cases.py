"""The named cases: what is measured, in which shape, and what it must reach."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    """A bound on a figure of a case, at least or at most `bound`."""

    figure: str
    bound: float
    at_least: bool

    def met(self, value: float) -> bool:
        """Whether a measured value is within the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Case:
    """One thing to measure. `shape` is what the measuring process is told."""

    says: str
    platform: str
    """cpu, gpu, or any."""
    shape: dict[str, Any]
    steps: int = 1
    """Steps, or repetitions, in each turn of a round."""
    targets: tuple[Target, ...] = field(default=())


@dataclass(frozen=True)
class StepCase(Case):
    """One full training step, AdamW with clipping, beside the same network in torch."""

    beside: tuple[str, ...] = ("torch eager", "torch compiled")
    """The other programs, of `turns.MODULES`."""


@dataclass(frozen=True)
class FigureCase(Case):
    """Figures of one function of `measure.figures`, named by its key."""

    function: str = ""


def _llama(
    layers: int, embed: int, heads: int, mlp: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {"layers": layers, "embed": embed, "heads": heads, "mlp": mlp, "vocab": vocab, **more}


def _shape(
    model: dict[str, Any], batch: int, length: int, dtype: str, **more: Any
) -> dict[str, Any]:
    """batch rows of length tokens; dtype is that of activations and products."""
    return {
        "model": model,
        "batch": batch,
        "length": length,
        "dtype": dtype,
        "param_dtype": "float32",
        "lora_rank": 0,
        "lora_targets": "all-linear",
        **more,
    }


LLAMA_42M = _llama(8, 512, 8, 1408, 32000)
LLAMA_10M = _llama(4, 256, 4, 704, 16384)
LLAMA_TINY = _llama(2, 64, 2, 128, 512)
LLAMA_1B = _llama(16, 2048, 32, 8192, 128256, kv_heads=8, head_dim=64)
LLAMA_31M = _llama(8, 512, 4, 1792, 4096, kv_heads=1, tied=False)
"""LLAMA_8B in small."""
LLAMA_8B = _llama(32, 4096, 32, 14336, 128256, kv_heads=8, tied=False)
GPT2_124M = {
    **_llama(12, 768, 12, 3072, 50304),
    "gated": False,
    "activation": "gelu_tanh",
    "norm": {"type": "layer"},
    "positions": "learned",
    "bias": {"qkv": True, "out": True, "mlp": True},
}

BERT_5M = {
    "structure": "encoder",
    "layers": 4,
    "embed": 256,
    "heads": 4,
    "vocab": 8192,
    "gated": False,
    "activation": "gelu",
    "positions": "learned",
    "norm": {"type": "layer", "place": "sum"},
    "embedding": {"norm": True, "types": 2},
    "bias": {"qkv": True, "out": True, "mlp": True},
}

CASES: dict[str, Case] = {
    "cpu-42m": StepCase(
        "Llama shape, 42 million parameters",
        "cpu",
        _shape(LLAMA_42M, 8, 512, "float32"),
        steps=2,
        targets=(Target("ratio", 1.2, True),),
    ),
    "lora-42m": StepCase(
        "Llama shape, 42 million parameters, frozen, adapters of rank 16 beside every kernel",
        "cpu",
        _shape(LLAMA_42M, 8, 512, "float32", lora_rank=16),
        steps=2,
        targets=(Target("ratio", 1.3, True),),
    ),
    "lora-42m-attention": StepCase(
        "Llama shape, 42 million parameters, frozen, adapters of rank 16 beside attention's",
        "cpu",
        _shape(LLAMA_42M, 8, 512, "float32", lora_rank=16, lora_targets="attention"),
        steps=2,
        targets=(Target("ratio", 1.3, True),),
    ),
    "cpu-10m": StepCase(
        "Llama shape, 7 million parameters",
        "cpu",
        _shape(LLAMA_10M, 8, 256, "float32"),
        steps=4,
    ),
    "tiny": StepCase(
        "a miniature that a test runs", "any", _shape(LLAMA_TINY, 2, 32, "float32"), steps=2
    ),
    "gpu-124m": StepCase("GPT-2 small", "gpu", _shape(GPT2_124M, 64, 1024, "bfloat16"), steps=10),
    "gpu-1b": StepCase("Llama 3.2 1B", "gpu", _shape(LLAMA_1B, 4, 4096, "bfloat16"), steps=5),
    "lora-8b": StepCase(
        "Llama 3 8B, frozen in bfloat16, adapters of rank 16 beside every kernel",
        "gpu",
        _shape(LLAMA_8B, 4, 4096, "bfloat16", param_dtype="bfloat16", lora_rank=16),
        steps=3,
        targets=(Target("tokens_per_second", 15_000, True), Target("ratio", 1.5, True)),
        beside=("torch eager", "torch compiled", "trl"),
    ),
    "lora-8b-nf4": StepCase(
        "the same with the base in nf4",
        "gpu",
        _shape(LLAMA_8B, 4, 4096, "bfloat16", param_dtype="nf4", lora_rank=16),
        steps=3,
        targets=(Target("tokens_per_second", 14_000, True),),
        beside=(),
    ),
    "lora-tiny": StepCase(
        "a miniature of lora-8b that a test runs",
        "any",
        _shape(LLAMA_TINY, 2, 32, "bfloat16", param_dtype="bfloat16", lora_rank=4),
        steps=2,
        beside=("torch eager", "trl"),
    ),
    "quickstart": FigureCase(
        "launch/quickstart.sh after the installation: training and a sample, then adapters",
        "cpu",
        {"preset": "quickstart", "second": "quickstart_lora"},
        targets=(
            Target("first_loss_seconds", 60, False),
            Target("seconds", 300, False),
            Target("validation_bits_per_byte", 2.3, False),
            Target("second_seconds", 180, False),
            Target("percent_answered_after", 90, True),
        ),
        function="quickstart",
    ),
    "compile-depth": FigureCase(
        "compile time of a 24-layer model over that of a 2-layer one",
        "any",
        _shape(_llama(2, 512, 8, 1408, 32000), 8, 512, "float32", layers=[2, 24]),
        targets=(Target("ratio", 1.3, False),),
        function="compile_depth",
    ),
    "loss-memory": FigureCase(
        "temporaries of the loss and its gradient",
        "any",
        {"batch": 4, "length": 1024, "embed": 512, "vocab": 50304},
        targets=(Target("temporary_megabytes", 200, False),),
        function="loss_memory",
    ),
    "data": FigureCase(
        "batches from the tokenized cache of the standard library",
        "any",
        {"sizes": [[8, 512], [64, 1024]]},
        targets=(
            Target("tokens_per_second_8x512", 1e6, True),
            Target("tokens_per_second_64x1024", 1e6, True),
        ),
        function="data",
    ),
    "overhead": FigureCase(
        "the training loop over its bare compiled step, same model and batch",
        "any",
        _shape(LLAMA_42M, 8, 512, "float32"),
        steps=2,
        targets=(Target("overhead_percent", 3.0, False),),
        function="overhead",
    ),
    "products": FigureCase(
        "the matrix products of cpu-42m alone, XLA's and torch's",
        "cpu",
        {"sizes": [[4096, 512, 1408], [4096, 1408, 512], [4096, 512, 512], [256, 512, 32000]]},
        function="products",
    ),
    "loading": FigureCase(
        "anonymous memory while a folder of 1 GB is loaded, over the parameters' bytes",
        "cpu",
        {
            "models": {
                "bfloat16": _llama(12, 1536, 12, 6144, 32001, tied=False),
                "float32": _llama(16, 1024, 16, 3072, 32000),
            },
            "files": [1, 5],
        },
        targets=tuple(
            Target(f"ratio_{kind}_{files}", 1.4, False)
            for kind in ("bfloat16", "float32")
            for files in ("1_file", "5_files")
        ),
        function="loading",
    ),
    "adapter-swap": FigureCase(
        "an adapter that was read into a slot of a loaded model, over the transfer of its bytes",
        "any",
        _shape(LLAMA_42M, 4, 64, "float32", rank=16, slots=4),
        steps=20,
        targets=(
            Target("milliseconds_beyond_transfer", 10, False),
            Target("programs_compiled", 0, False),
        ),
        function="adapter_swap",
    ),
    "loading-nf4": FigureCase(
        "anonymous memory while a folder of 1 GB becomes a base in nf4, over that base's bytes",
        "cpu",
        {"model": _llama(12, 1536, 12, 6144, 32001, tied=False), "frozen_dtype": "nf4"},
        targets=(Target("ratio", 1.5, False),),
        function="quantized_loading",
    ),
    "lora-memory": FigureCase(
        "memory of a LoRA step of Llama 3 8B against full fine-tuning at 16 bytes a parameter",
        "any",
        {
            **_shape(LLAMA_8B, 1, 512, "bfloat16", lora_rank=16),
            "small": {"model": LLAMA_31M, "lora_rank": 2},
        },
        targets=tuple(
            Target(f"percent_less_{kind}{size}", bound, True)
            for size in ("", "_small")
            for kind, bound in (("bfloat16", 85), ("nf4", 93))
        ),
        function="lora_memory",
    ),
    "sentences": FigureCase(
        "short texts packed, over padded to the longest of all; to the batch's; in buckets",
        "any",
        {"model": BERT_5M, "batch": 64, "length": 128, "longest": 80},
        steps=8,
        targets=(Target("ratio_mlm", 2.2, True), Target("ratio_classification", 2.2, True)),
        function="sentences",
    ),
    "trainer": FigureCase(
        "a BERT of 5 million parameters learns to label texts, beside Trainer of transformers",
        "cpu",
        {
            "bert": {
                "hidden_size": 256,
                "intermediate_size": 1024,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "max_position_embeddings": 128,
            },
            "vocab": 8192,
            "length": 80,
            "batch": 32,
            "rows": 11,
            "epochs": 2,
            "learning_rate": 3e-4,
        },
        targets=(
            Target("ratio", 1.2, True),
            Target("standard_errors_apart", 2, False),
        ),
        function="trainer",
    ),
    "preflight": FigureCase(
        "until all processes of a job have met, compared what they run, and summed over devices",
        "cpu",
        {"processes": [2, 8]},
        targets=(Target("seconds_8_processes", 10, False),),
        function="preflight",
    ),
    "faults": FigureCase(
        "until all processes of a job have ended, after a fault of one, and beyond any time limit",
        "cpu",
        {
            "processes": 4,
            "limit": 20,
            "words": [
                *("batch=8", "length=32", "model.layers=2", "model.embed=32", "model.heads=4"),
                *("tokenizer.vocab=300", "log.every=1", "platform=cpu", "steps=100000"),
            ],
        },
        targets=(
            Target("seconds_exception", 5, False),
            Target("seconds_killed", 5, False),
            Target("seconds_killed_first", 5, False),
            Target("seconds_vanished", 120, False),
        ),
        function="faults",
    ),
    "weak-scaling": FigureCase(
        "the network's part of a step over simulated hosts with slow links, beside the planner's",
        "cpu",
        {
            "hosts": [2, 4],
            "megabits": [100, 200],
            "rows": 2,
            "words": [
                *("model.layers=2", "model.embed=512", "model.heads=8", "model.mlp=1536"),
                *("tokenizer.vocab=1024", "length=32", "seed=1", "mesh.fsdp=1"),
                *("platform=cpu", "compute_dtype=float32"),
            ],
        },
        steps=2,
        targets=(Target("percent_off_worst", 25, False),),
        function="weak_scaling",
    ),
    "attention": FigureCase(
        "attention forward and backward by backend",
        "any",
        {"batch": 8, "length": 512, "heads": 8, "kv_heads": 8, "head_dim": 64},
        steps=3,
        function="attention",
    ),
    "attention-long": FigureCase(
        "attention forward and backward by backend",
        "any",
        {"batch": 1, "length": 4096, "heads": 8, "kv_heads": 8, "head_dim": 64},
        function="attention",
    ),
}
