"""Texts, pairs and words as ids with what goes around them, within a length."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.core.errors import ConfigError, DataError
from jaxlm.text.tokenizer import Tokenizer

TRUNCATES = ("truncate-right", "truncate-left")
OVERLONG = ("error", *TRUNCATES)
"""What becomes of a text that is longer than the model that is asked of it."""


class Fitted(NamedTuple):
    """A text as a model reads it."""

    ids: list[int]
    types: list[int]
    """The token type of each id."""
    over: int
    """How many ids it was too long by."""
    firsts: list[int]
    """Of words: the place of each one's first id, -1 for one that has none or was cut off."""


def fit(
    tokenizer: Tokenizer, text: str, pair: str | None, *, length: int, overlong: str, where: str
) -> Fitted:
    """A text, or a pair, cut to `length` ids by `overlong` (see `cut`), special tokens kept.

    Of a pair the longer text is cut first, as transformers' longest_first does. Raises DataError
    naming `where` for an empty text.
    """
    ids = [_encoded(tokenizer, each, where) for each in (text, pair) if each is not None]
    around = len(tokenizer.joined(*([] for _ in ids))[0])
    over = sum(map(len, ids)) + around - length
    if over > 0:
        rooms = _rooms([len(each) for each in ids], max(0, length - around))
        ids = [cut(each, room, overlong) for each, room in zip(ids, rooms, strict=True)]
    whole, types = tokenizer.joined(*ids)
    return Fitted(whole, types, max(0, over), [])


def fit_words(
    tokenizer: Tokenizer, words: Sequence[str], *, length: int, overlong: str, where: str
) -> Fitted:
    """Words with a space between them, as one text; else as `fit`.

    The first id of a word is the first that holds any of its letters and began no word before.
    """
    if empty := [number for number, word in enumerate(words, 1) if not word.strip()]:
        raise DataError(where, f"word {empty[0]} is empty; leave it out, and its label")
    if not words:
        raise DataError(where, "there is no word; write at least one")
    ids, spans = tokenizer.encode_offsets(" ".join(words))
    around = len(tokenizer.joined([])[0])
    over = len(ids) + around - length
    first = max(0, over) if overlong == "truncate-left" else 0
    firsts = _firsts(words, spans)
    if over > 0:
        ids = cut(ids, max(0, length - around), overlong)
    before = len(tokenizer.frame.before)
    kept = [at - first if first <= at < first + len(ids) else -1 for at in firsts]
    whole, types = tokenizer.joined(ids)
    return Fitted(whole, types, max(0, over), [at + before if at >= 0 else -1 for at in kept])


def cut(ids: list[int], room: int, overlong: str) -> list[int]:
    """The last `room` ids for truncate-left, else the first."""
    return ids[len(ids) - min(room, len(ids)) :] if overlong == "truncate-left" else ids[:room]


def check_overlong(overlong: str) -> None:
    """Raise ConfigError for what is none of OVERLONG."""
    if overlong not in OVERLONG:
        raise ConfigError("overlong", f"{overlong!r} is none of {', '.join(OVERLONG)}; write one")


def check_room(tokenizer: Tokenizer, length: int, texts: int = 1) -> None:
    """Raise ConfigError where `length` ids have no room for texts beside what goes around them."""
    around = len(tokenizer.joined(*([] for _ in range(texts)))[0])
    if length < around + texts:
        what = f"{length} tokens have no room for {'a text' if texts == 1 else 'two texts'} in the"
        raise ConfigError("length", f"{what} tokenizer's {around} around; use more")


def check_fits(over: int, length: int, overlong: str, where: str) -> None:
    """Raise DataError for a text that is `over` ids longer than a model's positions, but where it
    is cut.
    """
    if over > 0 and overlong == "error":
        what = f"{length + over} tokens are more than the model's {length} positions"
        raise DataError(where, f"{what}; cut it, or use overlong=truncate-right (--overlong)")


def _encoded(tokenizer: Tokenizer, text: str, where: str) -> list[int]:
    if not text.strip():
        raise DataError(where, "the text is empty; write at least one character")
    return tokenizer.encode(text, add_special=False)


def _rooms(sizes: list[int], room: int) -> list[int]:
    """What each of one or two texts gets: the shorter one all it needs, up to half."""
    if len(sizes) == 1:
        return [room]
    less, more = sorted(sizes)
    if less + max(less, room - less) <= room:
        less, more = less, room - less
    else:
        less, more = room // 2, room - room // 2
    return [more, less] if sizes[0] > sizes[1] else [less, more]


def _firsts(words: Sequence[str], spans: np.ndarray) -> list[int]:
    """The place of each word's first id. spans [T, 2]: the letters of each id."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    starts = ends - [len(word) for word in words]
    found, place = [], 0
    for start, end in zip(starts, ends, strict=True):
        while place < len(spans) and (
            spans[place, 1] <= start or spans[place, 0] == spans[place, 1]
        ):
            place += 1
        inside = place < len(spans) and spans[place, 0] < end
        found.append(place if inside else -1)
        place += inside
    return found
