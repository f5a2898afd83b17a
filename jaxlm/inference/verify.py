"""Are two models the same? Scores on a text, tokenizers, special tokens and architectures."""

import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import families
from jaxlm.checkpoint.digest import digests
from jaxlm.checkpoint.manifest import chain
from jaxlm.core import tree
from jaxlm.core.errors import DataError, StorageError
from jaxlm.inference.model import Model, load
from jaxlm.models.quantize import total
from jaxlm.models.spec import ModelSpec

FILE = "receipt.json"
TEXT = """The quick brown fox jumps over the lazy dog. 1234567890 -- 3.14159 + 2.71828j
Größe, naïveté, Ελληνικά, русский, עברית, العربية, हिन्दी, 日本語の文, 中文字符, 한국어.
👩‍👩‍👧‍👦 🏳️‍🌈 🚀
def main(argv: list[str]) -> int:
\tif not argv:
        raise SystemExit("usage: main FILE ...")   # 4 spaces,    then   more
    return sum(len(word) for word in argv)
<s> </s> <|endoftext|> [CLS] [SEP] <pad> are no special tokens here. https://example.org/a?b=c&d=%20
"""
"""Many scripts, code, long white space, and what looks like special tokens."""
MOST = 512
"""Tokens of the text that scores are compared on."""
TOLERANCES = {4: 2e-4, 2: 5e-2}
"""Bytes of the coarser model's weights -> largest difference, as a share of the largest score."""
PACKAGES = ("jax", "flax", "numpy", "tokenizers", "safetensors")


def verify(
    a: str, b: str, *, text: str | None = None, receipt: Path | None = None
) -> dict[str, Any]:
    """Compare the models at `a` and `b` (runs, imports, Hugging Face folders) on the first device.

    text: to compare on; TEXT by default. receipt: the folder that gets receipt.json. Returns what
    it holds: both sides with digests, versions, figures, verdict (`equal` or `different`) and, when
    they differ, the reason. Raises CheckpointError and DataError as `load` does, DataError for a
    text of fewer than two tokens, and StorageError where no receipt can be written.
    """
    text = TEXT if text is None else text
    first, second = load(a), load(b)
    figures = compare(first, second, text)
    return judged(side(a, first), side(b, second), figures, PACKAGES, receipt)


def judged(
    a: dict[str, Any],
    b: dict[str, Any],
    figures: dict[str, Any],
    packages: Iterable[str],
    receipt: Path | None,
) -> dict[str, Any]:
    """What `verify` returns, of both sides and their figures; written into the folder `receipt`."""
    reason = _reason(figures)
    found = {
        "a": a,
        "b": b,
        "versions": {name: importlib.metadata.version(name) for name in ("jaxlm", *packages)},
        "figures": figures,
        "verdict": "different" if reason else "equal",
        "reason": reason,
    }
    if receipt is not None:
        body = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
        try:
            receipt.mkdir(parents=True, exist_ok=True)
            (receipt / FILE).write_text(body, encoding="utf-8")
        except OSError as error:
            what = f"{FILE} cannot be written: {error.strerror}; name another folder"
            raise StorageError(str(receipt), what) from error
    return found


def compare(a: Model, b: Model, text: str) -> dict[str, Any]:
    """How far apart two models are: see the names."""
    tokens, vocab = rows(a, text, b.spec), min(a.spec.vocab, b.spec.vocab)
    special = [(m.tokenizer.bos, m.tokenizer.ends, m.tokenizer.pad) for m in (a, b)]
    figures = apart(*(scores(m, tokens)[..., :vocab] for m in (a, b)))
    return {"tokens compared": tokens.shape[1], **figures} | {
        "tolerance": TOLERANCES[min(itemsize(a), itemsize(b))],
        "same token ids": a.tokenizer.encode(text) == b.tokenizer.encode(text),
        "same special tokens": special[0] == special[1],
        "same architecture": families.computed(a.spec) == families.computed(b.spec),
    }


def rows(model: Model, text: str, *others: ModelSpec) -> np.ndarray:
    """The text as int32 [1, L] that the model and others can read. Raises DataError for too few."""
    ids, specs = model.tokenizer.encode(text), (model.spec, *others)
    length = min(len(ids), MOST, *(spec.max_length for spec in specs))
    if length < 2:
        raise DataError("--text", f"{len(ids)} tokens are too few to compare on; write a sentence")
    last = min(spec.vocab for spec in specs) - 1
    return np.minimum(np.array([ids[:length]], np.int32), last)


def is_pair(model: Model) -> bool:
    """Whether a model reads one text and writes another; a classifier reads the same one twice."""
    return model.spec.structure == "encoder-decoder" and not model.spec.head.labels


def scores(model: Model, tokens: np.ndarray) -> np.ndarray:
    """What a model makes of rows [B, L], which are source and target where it needs both."""
    return np.asarray(model.logits(tokens, source=tokens if is_pair(model) else None))


def apart(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """How far apart scores [..., V] are. KL is of the first's probabilities from the second's, in
    nats.
    """
    first, second = (np.asarray(scores, np.float64) for scores in (first, second))
    distance = np.abs(first - second)
    p, q = (np.asarray(jax.nn.log_softmax(jnp.asarray(x))) for x in (first, second))
    largest = float(np.abs(first).max())
    return {
        "largest score": largest,
        "largest difference": float(distance.max()),
        "as a share": float(distance.max() / max(largest, 1e-30)),
        "mean difference": float(distance.mean()),
        "mean KL": float((np.exp(p) * (p - q)).sum(-1).mean()),
        "same first choice": float((first.argmax(-1) == second.argmax(-1)).mean()),
    }


def _reason(figures: dict[str, Any]) -> str:
    """The first thing that differs, or nothing."""
    if wrong := [name for name, value in figures.items() if value is False]:
        return f"not the {wrong[-1]}"
    share, bound = figures["as a share"], figures["tolerance"]
    if not share <= bound:  # a NaN is not
        return f"scores are {share:.3g} of the largest apart, more than {bound:g}"
    return ""


def side(path: str, model: Model) -> dict[str, Any]:
    """What a receipt says of a model."""
    found, _ = digests(tree.flatten(model.params))
    return {
        "path": path,
        "parameters": total(model.params),
        "digest": chain({"params": found}),
        "tokenizer": model.tokenizer.digest,
    }


def itemsize(model: Model) -> int:
    """Bytes of the coarsest weights, 2 or 4: a key of TOLERANCES."""
    sizes = [leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params)]
    return 2 if min(sizes) < 4 else 4
