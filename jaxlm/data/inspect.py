"""Rows as the model will see them, for a person to look at."""

import itertools

import numpy as np

from jaxlm.data.packing import Batch
from jaxlm.data.pipeline import Dataset
from jaxlm.text.tokenizer import Tokenizer

VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
"""Control characters as their pictures: text from anywhere must not steer the terminal."""
VISIBLE |= dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)
TRAINED, BOUNDARY, PLAIN = "\x1b[32m", "\x1b[36m", "\x1b[0m"


def inspect(dataset: Dataset, tokenizer: Tokenizer, n: int, color: bool) -> str:
    """The first n rows: a line of counts, then the text, with a mark before each document.

    With `color`, trained tokens are green. A token is trained when it is a target of weight over 0;
    of rows without targets, texts that are compared, none is.
    """
    batch = dataset.batch(0, min(n, dataset.rows))
    return "\n\n".join(_row(batch, row, tokenizer, color) for row in range(len(batch["tokens"])))


def _row(batch: Batch, row: int, tokenizer: Tokenizer, color: bool) -> str:
    segments = batch["segments"][row]
    filled = int((segments > 0).sum())
    ids, learned = batch["tokens"][row][:filled].tolist(), np.zeros(filled, bool)
    text = f"row {row}: {segments.max()} documents, "
    if "targets" in batch:
        weights = batch["weights"][row]
        learned = np.concatenate([[False], weights[:filled] > 0])
        ids.append(int(batch["targets"][row][filled - 1]))
        if not learned[-1]:
            ids, learned = ids[:-1], learned[:-1]
        text += f"{(weights > 0).sum()} of {segments.size} tokens trained, "
    text += f"{filled / segments.size:.1%} filled"
    document = np.append(segments[:filled], segments[filled - 1])
    runs = itertools.groupby(range(len(ids)), lambda i: (int(document[i]), bool(learned[i])))
    shown = 0
    for (number, is_learned), run in runs:
        if number != shown:
            text += _painted(f"\n[document {number}] ", BOUNDARY, color)
            shown = number
        part = tokenizer.decode([ids[i] for i in run], skip_special=False)
        text += _painted(part.translate(VISIBLE), TRAINED, color and is_learned)
    return text


def _painted(text: str, code: str, color: bool) -> str:
    return f"{code}{text}{PLAIN}" if color else text
