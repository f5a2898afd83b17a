"""A few rows of general text, the same for every run: what a base should still know when tuned."""

import hashlib
import itertools
import math

import numpy as np

from jaxlm.core.errors import DataError
from jaxlm.data import sources
from jaxlm.data.examples import Packed, Tokenized
from jaxlm.data.pipeline import Dataset
from jaxlm.data.sources import Source
from jaxlm.text.tokenizer import Tokenizer

TOKENS = 8192
"""About so many in all, in rows of at most LONGEST."""
LONGEST = 512
LETTERS = 16
"""Of a text are tokenized for each token that is wanted."""
LOOKED_AT = 512
"""Documents among which the rows are chosen."""


def general(source: Source, tokenizer: Tokenizer, length: int) -> Dataset:
    """The beginnings of a few of the first documents of a source, one a row, every token learned.

    Chosen by a hash of their text. Raises DataError for a source without text.
    """
    length = min(length, LONGEST)
    found = itertools.islice(sources.read(source), LOOKED_AT)
    texts = sorted(set(found), key=lambda text: hashlib.sha256(text.encode()).digest())
    rows = []
    for text in texts[: math.ceil(TOKENS / length)]:
        ids = tokenizer.beginning(text[: LETTERS * length])[: length + 1]
        if len(ids) > 1:
            rows.append(Tokenized(np.array(ids, np.uint32), np.ones(len(ids), bool)))
    if not rows:
        raise DataError(source.path, "holds no text; name another for evaluate.general")
    plan, pad = tuple((number,) for number in range(len(rows))), tokenizer.pad
    return Dataset((Packed(tuple(rows), plan, length, pad),), None, length, pad, None)
