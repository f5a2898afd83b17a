"""The standard library's source, tokenized into a cache: real text that every machine has."""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path

from jaxlm.config.schema import Data
from jaxlm.data.packing import Windows
from jaxlm.data.pipeline import Dataset, documents, open_data, training_texts
from jaxlm.text.tokenizer import Tokenizer
from jaxlm.text.tokenizer import load as load_tokenizer
from jaxlm.text.train import train

SOURCES = Data(train="stdlib")  # pyright: ignore[reportArgumentType]


def tokenizer(folder: Path, vocab: int = 4096) -> Tokenizer:
    """The tokenizer in `folder`/tokenizer, trained on a few files when it is not there yet."""
    path = folder / "tokenizer"
    if not path.is_dir():
        texts: Iterable[str] = training_texts(SOURCES.train, None)
        train("bpe", vocab, islice(texts, 200)).save(path)
    return load_tokenizer(path)


def stdlib(folder: Path, length: int) -> Dataset:
    """Rows of `length` tokens; tokenizer and cache are made in `folder` the first time."""
    own = tokenizer(folder)
    rows = partial(Windows, length=length, vocab=own.vocab, pad=own.pad)
    opener = documents(own, rows, cache=folder / "cache")
    dataset, _ = open_data(SOURCES.train, None, opener, length=length, pad=own.pad, seed=0)
    return dataset
