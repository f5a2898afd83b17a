"""What a model is asked of, as batches: rows of ids, masks, sources, types; and many texts."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax import Array

from jaxlm.core.errors import DataError
from jaxlm.models.spec import ModelSpec

Tokens = Sequence[Sequence[int]] | np.ndarray | Array
ROWS, WIDTH = 64, 32
"""Most texts of a batch, and what divides its columns: so few shapes are compiled."""


def by_length(
    rows: Sequence[Sequence[int]], longest: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(which rows [n], a batch [N, L] that begins with them, what of it is real): those of like
    lengths together, in up to `longest` columns.
    """
    sizes = [len(row) for row in rows]
    order = np.argsort(sizes, kind="stable")
    for start in range(0, len(rows), ROWS):
        index = order[start : start + ROWS]
        wide = -(-sizes[index[-1]] // WIDTH) * WIDTH
        shape = 1 << (index.size - 1).bit_length(), min(wide, longest)
        real = filled([[1] * sizes[i] for i in index], shape)
        yield index, filled([rows[i] for i in index], shape), real


def filled(rows: Sequence[Sequence[int]], shape: tuple[int, int]) -> np.ndarray:
    """Rows of any lengths as int32 `shape`, 0 beyond them."""
    found = np.zeros(shape, np.int32)
    for row, values in zip(found, rows, strict=False):
        row[: len(values)] = values
    return found


def batch_of(
    spec: ModelSpec,
    tokens: Tokens,
    mask: Any = None,
    source: Tokens | None = None,
    source_mask: Any = None,
    types: Any = None,
) -> dict[str, np.ndarray]:
    """A batch as Forward has it, of what `Model.logits` is given. Raises DataError as it does."""
    rows = _rows(tokens)
    if types is not None and not spec.embedding.types:
        raise DataError("types", "is nothing that this model has; leave it out")
    if spec.structure != "encoder-decoder":
        if source is not None:
            raise DataError(
                "source",
                f"is nothing that a model of structure {spec.structure} reads; leave it out",
            )
        batch = _checked(spec, rows, mask)
        if types is not None:
            batch["types"] = _checked_types(spec, types, rows)
        return batch
    if source is None and not spec.head.labels:
        raise DataError("source", "is missing: it is what an encoder-decoder's tokens continue")
    if source is None:  # a classifier reads the text twice
        source, source_mask = rows, mask
        rows = _shifted(rows, spec.encoder.start, mask)
    read = _checked(spec, _rows(source), source_mask)
    if read["tokens"].shape[0] != len(rows):
        have = f"{read['tokens'].shape[0]} rows for {len(rows)} of tokens"
        raise DataError("source", f"has {have}; give one for each")
    names = {"tokens": "source", "positions": "source_positions", "segments": "source_segments"}
    return _checked(spec, rows, mask) | {names[name]: array for name, array in read.items()}


def _shifted(rows: np.ndarray, start: int, mask: Any) -> np.ndarray:
    """Rows [B, L] one place on, after `start`, which is where the first real token was."""
    moved = np.insert(rows, 0, start, axis=1)[:, :-1]
    if mask is not None:
        moved[np.arange(len(rows)), np.argmax(np.asarray(mask) != 0, axis=1)] = start
    return moved


def _checked_types(spec: ModelSpec, types: Any, rows: np.ndarray) -> np.ndarray:
    given, most = np.asarray(types), spec.embedding.types
    if given.shape != rows.shape or not 0 <= given.min() <= given.max() < most:
        what = f"{list(given.shape)} from {given.min()} to {given.max()}"
        raise DataError("types", f"{what} are not {list(rows.shape)} within [0, {most})")
    return given.astype(np.int32)


def _checked(spec: ModelSpec, tokens: np.ndarray, mask: Any) -> dict[str, np.ndarray]:
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise DataError("tokens", f"{tokens.dtype}{list(tokens.shape)} are not ids [B, L]")
    if not tokens.size:
        raise DataError("tokens", f"{list(tokens.shape)} holds none; give at least one row")
    if not 0 <= tokens.min() <= tokens.max() < spec.vocab:
        raise DataError("tokens", f"ids {tokens.min()} to {tokens.max()} leave [0, {spec.vocab})")
    if tokens.shape[1] > spec.max_length:
        raise DataError(
            "tokens",
            f"rows of {tokens.shape[1]} are longer than the model's {spec.max_length} "
            "positions; cut them",
        )
    if mask is None:
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        return {"tokens": tokens.astype(np.int32), "positions": positions.astype(np.int32)}
    real = np.asarray(mask).astype(bool)
    if real.shape != tokens.shape:
        raise DataError("mask", f"has shape {list(real.shape)}, tokens {list(tokens.shape)}")
    return {
        "tokens": np.where(real, tokens, 0).astype(np.int32),
        "positions": np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32),
        "segments": real.astype(np.int32),
    }


def _rows(tokens: Tokens) -> np.ndarray:
    try:
        return np.asarray(tokens)
    except ValueError:
        wrong = "rows differ in length; fill them to one length and pass a mask"
        raise DataError("tokens", wrong) from None
