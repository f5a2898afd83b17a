"""Are two models the same? Scores on a text, tokenizers, special tokens and architectures."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import families
from jaxlm.checkpoint.digest import digests
from jaxlm.checkpoint.manifest import chain
from jaxlm.core import tree
from jaxlm.core.errors import DataError
from jaxlm.inference.model import Model, load

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
    """Compare the models at `a` and `b`, each a run or a Hugging Face folder, on the first device.

    text: to compare on; TEXT by default. receipt: the folder that gets receipt.json. Returns what
    it holds: both sides with digests, versions, figures, verdict (`equal` or `different`) and, when
    they differ, the reason. Raises CheckpointError and DataError as `load` does, and DataError for
    a text of fewer than two tokens.
    """
    text = TEXT if text is None else text
    first, second = load(a), load(b)
    figures = compare(first, second, text)
    reason = _reason(figures)
    found = {
        "a": _side(a, first),
        "b": _side(b, second),
        "versions": {name: importlib.metadata.version(name) for name in ("jaxlm", *PACKAGES)},
        "figures": figures,
        "verdict": "different" if reason else "equal",
        "reason": reason,
    }
    if receipt is not None:
        body = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
        (receipt / FILE).write_text(body, encoding="utf-8")
    return found


def compare(a: Model, b: Model, text: str) -> dict[str, Any]:
    """How far apart two models are: see the names. KL is of a's probabilities from b's, in nats."""
    ids = a.tokenizer.encode(text)
    length = min(len(ids), MOST, a.spec.max_length, b.spec.max_length)
    if length < 2:
        raise DataError("--text", f"{len(ids)} tokens are too few to compare on; write a sentence")
    vocab = min(a.spec.vocab, b.spec.vocab)
    tokens = [[min(i, vocab - 1) for i in ids[:length]]]
    first, second = (np.asarray(m.logits(tokens), np.float64)[..., :vocab] for m in (a, b))
    apart = np.abs(first - second)
    p, q = (np.asarray(jax.nn.log_softmax(jnp.asarray(x))) for x in (first, second))
    special = [(m.tokenizer.bos, m.tokenizer.eos, m.tokenizer.pad) for m in (a, b)]
    largest = float(np.abs(first).max())
    return {
        "tokens compared": length,
        "largest score": largest,
        "largest difference": float(apart.max()),
        "as a share": float(apart.max() / max(largest, 1e-30)),
        "mean difference": float(apart.mean()),
        "mean KL": float((np.exp(p) * (p - q)).sum(-1).mean()),
        "same first choice": float((first.argmax(-1) == second.argmax(-1)).mean()),
        "tolerance": TOLERANCES[min(_itemsize(a), _itemsize(b))],
        "same token ids": ids == b.tokenizer.encode(text),
        "same special tokens": special[0] == special[1],
        "same architecture": families.computed(a.spec) == families.computed(b.spec),
    }


def _reason(figures: dict[str, Any]) -> str:
    """The first thing that differs, or nothing."""
    for name in ("same architecture", "same token ids", "same special tokens"):
        if not figures[name]:
            return f"not the {name}"
    share, bound = figures["as a share"], figures["tolerance"]
    if not share <= bound:  # a NaN is not
        return f"scores are {share:.3g} of the largest apart, more than {bound:g}"
    return ""


def _side(path: str, model: Model) -> dict[str, Any]:
    found, _ = digests(tree.flatten(model.params))
    return {
        "path": path,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "digest": chain({"params": found}),
        "tokenizer": model.tokenizer.digest,
    }


def _itemsize(model: Model) -> int:
    sizes = [leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params)]
    return 2 if min(sizes) < 4 else 4
