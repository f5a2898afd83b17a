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
    filled, targets = int((segments > 0).sum()), batch.get("targets")
    text = f"row {row}: {segments.max()} documents, "
    if targets is not None:
        trained = (batch["weights"][row] > 0).sum()
        text += f"{trained} of {segments.size} tokens trained, "
    text += f"{filled / segments.size:.1%} filled"
    if "source" in batch:
        read = int((batch["source_segments"][row] > 0).sum())
        ids = batch["source"][row][:read]
        text += _shown(ids, batch["source_segments"][row], ids < 0, "source", tokenizer, color)
    ids, learned = _learned(batch, row, filled)
    document = np.append(segments[:filled], segments[filled - 1])
    return text + _shown(ids, document, learned, "document", tokenizer, color)


def _learned(batch: Batch, row: int, filled: int) -> tuple[np.ndarray, np.ndarray]:
    """(the ids of a row, which of them are predicted): with the last target where that is next."""
    ids, learned = batch["tokens"][row][:filled], np.zeros(filled, bool)
    weights = batch["weights"][row] if "weights" in batch else np.zeros(0)
    if "at" in batch:
        learned[batch["at"][row][weights > 0]] = True
    elif weights.size == batch["tokens"].shape[1] and weights[:filled].any():
        ids = np.append(ids, batch["targets"][row][filled - 1])
        learned = np.append(False, weights[:filled] > 0)
        if not learned[-1]:
            ids, learned = ids[:-1], learned[:-1]
    return ids, learned


def _shown(
    ids: np.ndarray,
    document: np.ndarray,
    learned: np.ndarray,
    name: str,
    tokenizer: Tokenizer,
    color: bool,
) -> str:
    """Ids as text, each of the documents [n] with its number on a line."""
    text, shown = "", 0
    runs = itertools.groupby(range(len(ids)), lambda i: (int(document[i]), bool(learned[i])))
    for (number, is_learned), run in runs:
        if number != shown:
            text += painted(f"\n[{name} {number}] ", BOUNDARY, color)
            shown = number
        part = tokenizer.decode([ids[i] for i in run], skip_special=False)
        text += painted(part.translate(VISIBLE), TRAINED, color and is_learned)
    return text


def painted(text: str, code: str, color: bool) -> str:
    """A text in a color, if any is wanted."""
    return f"{code}{text}{PLAIN}" if color else text
