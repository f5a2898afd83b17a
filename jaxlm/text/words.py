"""Where words begin and end: by the pieces of a vocabulary, and in a text."""

from collections.abc import Callable, Sequence

import numpy as np

PART = "\ufffd"
"""Stands in a piece for bytes that are no whole character."""
CONTEXTS = ("a", "1")
"""What a piece is put beside, to see whether it is always cut off there: a letter and a digit."""
SENTENCE_ENDS = (".", "!", "?", "\n")


def starts(pieces: Sequence[str | None], apart: Callable[[str, str], bool]) -> np.ndarray:
    """bool [vocab]: whether a piece begins a word whatever stands before it.

    pieces: the text of each id, None for special tokens. apart: whether two texts are always
    cut where they meet.
    """
    return np.array([_starts(piece, apart) for piece in pieces], bool)


def ends(pieces: Sequence[str | None], apart: Callable[[str, str], bool]) -> np.ndarray:
    """bool [vocab]: whether a word begins after a piece whatever stands there; as `starts`."""
    return np.array([_ends(piece, apart) for piece in pieces], bool)


def sentence_ends(pieces: Sequence[str | None]) -> np.ndarray:
    """bool [vocab]: whether a piece ends with what ends a sentence; see `starts`."""
    return np.array([piece is not None and piece.endswith(SENTENCE_ENDS) for piece in pieces], bool)


def _starts(piece: str | None, apart: Callable[[str, str], bool]) -> bool:
    if not piece:
        return piece is None
    if piece[0].isspace() or PART in piece:
        return piece[0].isspace()
    return all(apart(before, piece) for before in CONTEXTS)


def _ends(piece: str | None, apart: Callable[[str, str], bool]) -> bool:
    if not piece:
        return piece is None
    if piece[-1].isspace() or PART in piece:
        return piece[-1].isspace() and piece[-1] != " "  # a space belongs to the word after it
    return all(apart(piece, after) for after in CONTEXTS)


def trimmed(text: str, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """int32 [T, 2]: spans of a text without the white space around what else is in them."""
    found = []
    for start, end in spans:
        part = text[start:end]
        if inside := part.strip():
            start += len(part) - len(part.lstrip())
            end = start + len(inside)
        found.append((start, end))
    return np.array(found, np.int32).reshape(-1, 2)
