"""Documents to ids, in batches that a tokenizer's memory can hold, and ids to files."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxlm.core.errors import DataError
from jaxlm.text.tokenizer import Tokenizer

CHUNK = 2**22
"""Characters per call of the tokenizer. Longer documents are tokenized in parts."""
PART = 2**18
"""Characters in such a part, at most."""


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists of about CHUNK characters, in order."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= CHUNK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encoded(texts: list[str], tokenizer: Tokenizer, parse_special: bool) -> list[np.ndarray]:
    """int64 ids of each document: [bos] ids eos."""
    first = [] if tokenizer.bos is None else [tokenizer.bos]
    found = [[np.array(first, np.int64)] for _ in texts]
    owners = iter([index for index, text in enumerate(texts) for _ in _parts(text)])
    for group in batches(part for text in texts for part in _parts(text)):
        for ids in tokenizer.encode_batch(group, parse_special=parse_special):
            found[next(owners)].append(np.array(ids, np.int64))
    return [np.concatenate([*pieces, [tokenizer.eos]]) for pieces in found]


def _parts(text: str) -> Iterator[str]:
    """A text, or parts that end where a line ends of one too long for a tokenizer's memory."""
    start = 0
    while len(text) > CHUNK and len(text) - start > PART:
        end = text.rfind("\n", start, start + PART) + 1 or start + PART
        yield text[start:end]
        start = end
    yield text[start:]


class Writer:
    """Appends documents to NAME.ids, and to NAME.offsets where each ends."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer):
        self.where, self.vocab = f"{folder.parent}: {name}", tokenizer.vocab
        self.dtype = np.dtype("<u2" if tokenizer.vocab <= 2**16 else "<u4")
        self.ids = (folder / f"{name}.ids").open("wb")
        self.offsets = (folder / f"{name}.offsets").open("wb")
        self.tokens = self.documents = 0
        self.offsets.write(np.int64(0).astype("<i8").tobytes())

    def add(self, ids: np.ndarray) -> None:
        """Append one document. Raises DataError for an id outside the vocabulary."""
        if ids.min() < 0 or ids.max() >= self.vocab:
            wrong = f"the tokenizer gave id {ids.max()}, outside its vocabulary of {self.vocab} ids"
            raise DataError(self.where, f"{wrong}; its files do not belong together")
        self.ids.write(ids.astype(self.dtype).tobytes())
        self.tokens += ids.size
        self.documents += 1
        self.offsets.write(np.int64(self.tokens).astype("<i8").tobytes())

    def close(self) -> dict[str, Any]:
        """Bring both files to the disk; what the manifest says of them."""
        for file in (self.ids, self.offsets):
            with file:
                sync(file)
        return {"dtype": self.dtype.str, "tokens": self.tokens, "documents": self.documents}


def sync(file: IO[Any]) -> None:
    """Have what was written on the disk."""
    file.flush()
    os.fsync(file.fileno())
