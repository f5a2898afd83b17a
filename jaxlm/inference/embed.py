"""Texts as vectors: framed on the way in, written on the way out."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax import Array

from jaxlm.core.errors import ConfigError, DataError
from jaxlm.core.tree import Params
from jaxlm.inference.output import whole
from jaxlm.models.embedding import embedding
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import Batch, Forward
from jaxlm.text.fitting import check_fits, check_overlong, cut
from jaxlm.text.tokenizer import Tokenizer


def embedder(forward: Forward) -> Callable[..., Array]:
    """(parameters, batch with a text a row, how) -> float32 [B, D], each of length 1; compiled."""

    def run(params: Params, batch: Batch, how: str) -> Array:
        hidden, _ = forward.hidden(params, batch, None)
        return embedding(hidden, batch["segments"], 1, how)[:, 0]

    return jax.jit(run, static_argnames="how")


def framed(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    spec: ModelSpec,
    *,
    overlong: str,
    where: Sequence[str] | None = None,
) -> list[list[int]]:
    """The ids of each text with what the model's own tokenizer puts around it.

    overlong: error, truncate-right or truncate-left. where: what each text is called in errors.
    Raises DataError for what is no text, has no token or is too long, ConfigError for another
    `overlong` and a model that embeds none.
    """
    check_overlong(overlong)
    if spec.structure == "encoder-decoder":
        what = "is an encoder-decoder; texts are embedded by an encoder or a decoder"
        raise ConfigError("MODEL", what)
    if isinstance(texts, str):
        raise DataError("texts", "are a list; write [text] for a single one")
    names = where or [f"text {number}" for number in range(1, len(texts) + 1)]
    for name, text in zip(names, texts, strict=True):
        if not isinstance(text, str):
            raise DataError(name, f"is {type(text).__name__}, not a text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(name, "has a lone surrogate; write valid Unicode") from None
        if not text.strip():
            raise DataError(name, "is empty; write a text, or leave it out")
    room, found = spec.max_length - len(tokenizer.framed([])), []
    for name, ids in zip(names, tokenizer.encode_batch([*texts]), strict=True):
        check_fits(len(ids) - room, spec.max_length, overlong, name)
        found.append(tokenizer.framed(cut(ids, room, overlong)))
        if not found[-1]:
            raise DataError(name, "has no token; write a text, or leave it out")
    return found


def _npy(path: Path, texts: Sequence[str], vectors: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, vectors)


def _jsonl(path: Path, texts: Sequence[str], vectors: np.ndarray) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text, vector in zip(texts, vectors, strict=True):
            row = {"text": text, "embedding": vector.tolist()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _parquet(path: Path, texts: Sequence[str], vectors: np.ndarray) -> None:
    import pyarrow
    import pyarrow.parquet

    flat = pyarrow.array(vectors.reshape(-1))
    lists = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = pyarrow.table({"text": pyarrow.array([*texts]), "embedding": lists})
    pyarrow.parquet.write_table(table, path)


WRITERS: dict[str, Callable[[Path, Sequence[str], np.ndarray], None]] = {
    ".npy": _npy,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
"""Suffix -> what writes such a file: the vectors [n, D] alone, or each beside its text."""


def write(path: str, texts: Sequence[str], vectors: np.ndarray) -> None:
    """Write the vectors [n, D] of texts, whole or not at all, as the suffix of `path` says."""
    with whole(path) as part:
        WRITERS[Path(path).suffix](part, texts, vectors)
