"""Rows of labeled texts as the model will see them, for a person to look at."""

from typing import Any

import numpy as np

from jaxlm.data.columns import Wanted, problem
from jaxlm.data.inspect import BOUNDARY, TRAINED, VISIBLE, painted
from jaxlm.data.packing import Batch
from jaxlm.data.pipeline import Dataset
from jaxlm.text.tokenizer import Tokenizer


def inspect(dataset: Dataset, tokenizer: Tokenizer, wanted: Wanted, n: int, color: bool) -> str:
    """The first n rows: a line of counts, then each text behind its label; of words each label
    behind the word's first token. With `color`, labels are green.
    """
    batch = dataset.batch(0, min(n, dataset.rows))
    shown = (_row(batch, row, tokenizer, wanted, color) for row in range(len(batch["tokens"])))
    return "\n\n".join(shown)


def _row(batch: Batch, row: int, tokenizer: Tokenizer, wanted: Wanted, color: bool) -> str:
    name = "source" if "source" in batch else "tokens"  # where an encoder-decoder reads it
    ids, segments = batch[name][row], batch["segments"][row]
    told, weights = batch["targets"][row], batch["weights"][row]
    filled = int((segments > 0).sum())
    text = (
        f"row {row}: {segments.max()} texts, {int((weights > 0).sum())} labels, "
        f"{filled / segments.size:.1%} filled"
    )
    for number in range(1, int(segments.max()) + 1):
        at = np.flatnonzero(segments == number)
        mark = f"\n[text {number}"
        if problem(wanted) == "tokens":
            text += painted(f"{mark}] ", BOUNDARY, color)
            for place in at.tolist():
                text += tokenizer.decode([ids[place]], skip_special=False).translate(VISIBLE)
                if weights[place] > 0:
                    text += painted(f"/{wanted.labels[told[place]]}", TRAINED, color)
            continue
        own = told.reshape(weights.size, -1)[number - 1]
        text += painted(f"{mark}: ", BOUNDARY, color)
        text += painted(_label(own, wanted), TRAINED, color) + painted("] ", BOUNDARY, color)
        text += tokenizer.decode(ids[at], skip_special=False).translate(VISIBLE)
    return text


def _label(told: Any, wanted: Wanted) -> str:
    """What is told of one text, in words."""
    kind = problem(wanted)
    if kind == "regression":
        return ", ".join(f"{value:g}" for value in told.tolist())
    if kind == "single":
        return wanted.labels[int(told[0])]
    return " | ".join(wanted.labels[i] for i in np.flatnonzero(told)) or "none"
