"""Texts that belong together, as rows: an anchor, its positive, and negatives of its own.

The columns are given, or found by their names:

anchor, query, question,        with positive, document, answer,
prompt or instruction           completion or output
sentence1, sentence2            also text1, text2, unless the record has a label or a score too
text                            a text alone: the positive is itself, under other dropout
negative(s), hard_negative(s)   a text or a list of them; with _1, _2 and so on several columns
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxlm.core.errors import DataError
from jaxlm.data import files
from jaxlm.data.audit import Audit
from jaxlm.data.cache import Say, held_out
from jaxlm.data.packing import READ, Batch
from jaxlm.data.pipeline import Opened, Opener
from jaxlm.data.records import files_of, records, text, there
from jaxlm.data.signatures import signatures
from jaxlm.data.sources import Source
from jaxlm.text.fitting import check_room, cut
from jaxlm.text.tokenizer import Tokenizer

ANCHORS = ("anchor", "query", "question", "prompt", "instruction")
POSITIVES = ("positive", "document", "answer", "completion", "output")
SYMMETRIC = (("sentence1", "sentence2"), ("text1", "text2"))
"""Columns of two texts of which neither asks."""
NEGATIVES = re.compile(r"(hard_)?negatives?(_(\d+))?")
MARKED = ("label", "score", "similarity")
"""Columns that say how much two texts belong together."""
AT_ONCE = 1024
"""Examples that are tokenized together."""


class How(Protocol):
    """What the configuration says of pairs."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the anchor, the positive and the negatives; none: found."""
        ...

    @property
    def negatives(self) -> int:
        """Most negatives of an example."""
        ...


class Example(NamedTuple):
    """The texts of one record: anchor, positive, then negatives."""

    where: str
    texts: tuple[str, ...]


@dataclass
class PairAudit(Audit):
    """What became of the examples of one source."""

    columns: str = ""
    tokens: int = 0
    negatives: int = 0
    left_out: int = 0
    """Negatives beyond the most that are used."""
    alone: int = 0
    """Examples whose positive is the anchor itself."""

    @property
    def what(self) -> str:
        """Their columns."""
        return f"examples of {self.columns}"

    def lines(self, pad_is_eos: bool) -> list[str]:
        """As a person reads it before the first step."""
        lines = super().lines(pad_is_eos)
        lines.append(f"  {self.tokens:,} tokens, {self.negatives:,} hard negatives")
        if self.left_out:
            what = "hard negatives are beyond objective.negatives and left out"
            lines.append(f"  {self.left_out:,} {what}")
        return lines


@dataclass(frozen=True)
class Pairs:
    """Examples as rows: each text a segment, positions from 0, at most `length` tokens.

    A row lacks the segments of negatives that its example has not.
    """

    ids: np.ndarray
    """uint32: of all texts, one after the other."""
    ends: np.ndarray
    """int64 [count x K + 1]: where each begins, and the last ends."""
    texts: np.ndarray
    """int32 [count, 2 K]: two words of the hash of each."""
    length: int
    pad: int

    @property
    def count(self) -> int:
        """Examples."""
        return len(self.texts)

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return self.ids.size

    @property
    def digest(self) -> str:
        """Of every text."""
        return hashlib.sha256(self.ids.tobytes() + self.ends.tobytes()).hexdigest()

    @property
    def _each(self) -> int:
        """Texts of an example."""
        return self.texts.shape[1] // 2

    def widths(self, index: np.ndarray) -> dict[str, int]:
        """Up to the end of the example with the most tokens."""
        sizes = self.ends[(index + 1) * self._each] - self.ends[index * self._each]
        return dict.fromkeys(READ, int(sizes.max()))

    def take(self, index: np.ndarray, drawn: np.ndarray) -> Batch:
        """The examples `index` [B]: tokens, segments and positions int32 [B, K x length], and
        texts int32 [B, 2 K].
        """
        each = self._each
        shape = (index.size, each * self.length)
        tokens = np.full(shape, self.pad, np.int32)
        segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for row, number in enumerate(index.tolist()):
            ends = self.ends[number * each : (number + 1) * each + 1]
            sizes, first = np.diff(ends), int(ends[0])
            at = slice(0, int(ends[-1]) - first)
            tokens[row, at] = self.ids[first : int(ends[-1])]
            segments[row, at] = np.repeat(np.arange(1, each + 1), sizes)
            positions[row, at] = np.arange(at.stop) - np.repeat(ends[:-1] - first, sizes)
        texts = self.texts[index]
        return {"tokens": tokens, "segments": segments, "positions": positions, "texts": texts}


def opener(
    tokenizer: Tokenizer, how: How, overlong: str, *, length: int, say: Say | None = None
) -> Opener:
    """Opens sources as texts that belong together, each framed as the model's own tokenizer does.

    overlong: error, truncate-right, truncate-left or drop, of texts longer than `length` tokens.
    What is held out is so by a hash of its anchor. Raises DataError with file and line, ConfigError
    where no text fits.
    """
    check_room(tokenizer, length)

    def opened(source: Source, hold_out: float) -> Opened:
        audit, splits = PairAudit(source.path), ([], [])
        read = read_examples(source, how, audit)
        while some := [*itertools.islice(read, AT_ONCE)]:
            for example, ids in zip(some, _tokenized(some, tokenizer), strict=True):
                if not (fitted := _fitted(example, ids, tokenizer, overlong, length, audit)):
                    continue
                held = hold_out > 0 and held_out(example.texts[0], hold_out)
                splits[held].append(fitted)
                audit.held += held
            if say and audit.examples % (10 * AT_ONCE) == 0:
                say(f"reading {source.path}: {audit.examples:,} examples")
        train, kept = (_rows(each, 2 + how.negatives, length, tokenizer.pad) for each in splits)
        audit.kept, audit.rows, audit.tokens = train.count, train.count, train.tokens
        audit.check()
        audit.negatives = sum(len(each) - 2 for each in splits[0])
        return Opened(train, kept, {"documents": audit.examples}, audit)

    return opened


def texts(sources: Iterable[Source], how: How, hold_out: float = 0.0) -> Iterator[str]:
    """All texts of these sources but those held out: what to train a tokenizer on."""
    for source in sources:
        for example in read_examples(source, how):
            if not hold_out or not held_out(example.texts[0], hold_out):
                yield from dict.fromkeys(example.texts)


def read_examples(source: Source, how: How, audit: PairAudit | None = None) -> Iterator[Example]:
    """The examples of a source in the order of its files. Raises DataError with file and line."""
    audit = audit or PairAudit(source.path)
    known: Counter[str] = Counter()
    read = signatures if source.path == files.STDLIB else records
    for where, record in itertools.chain.from_iterable(map(read, files_of(source.path))):
        columns = how.columns or _columns(record, source.field, where)
        said = [_said(record, name, where) for name in columns[:2]]
        against = [each for name in columns[2:] for each in _several(record, name, where)]
        known[", ".join(dict.fromkeys(columns))] += 1
        audit.columns = " and ".join(known)
        audit.examples += 1
        audit.alone += columns[0] == columns[1]
        audit.left_out += max(0, len(against) - how.negatives)
        yield Example(where, (*said, *against[: how.negatives]))


def _columns(record: dict[str, Any], field: str, where: str) -> tuple[str, ...]:
    """Those of the anchor, the positive and the negatives of a record, by their names."""
    matches = filter(None, map(NEGATIVES.fullmatch, record))
    numbered = ((int(match[3] or 0), match[0]) for match in matches)
    negatives = [name for _, name in sorted(numbered)]
    anchor = next((name for name in ANCHORS if name in record), None)
    positive = next((name for name in POSITIVES if name in record), None)
    asymmetric = ((anchor, positive),) if anchor and positive else ()
    for pair in (*asymmetric, *SYMMETRIC):
        if set(pair) <= record.keys():
            if marked := [name for name in MARKED if name in record]:
                what = f"has {marked[0]} beside {' and '.join(pair)}, which may not belong together"
                advice = f"keep those that do, and write objective.columns=[{', '.join(pair)}]"
                raise DataError(where, f"{what}; {advice}")
            return *pair, *negatives
    if field in record:
        return field, field, *negatives
    what = f"the columns are {there(record)}; name two: objective.columns=[ANCHOR, POSITIVE]"
    raise DataError(where, what)


def _said(record: dict[str, Any], name: str, where: str) -> str:
    _check_there(record, name, where)
    if not (found := text(record, name, where)):
        raise DataError(where, f"{name} is empty; write a text, or leave the record out")
    return found


def _several(record: dict[str, Any], name: str, where: str) -> list[str]:
    """The texts of a column that holds one, a list, or nothing."""
    _check_there(record, name, where)
    value = record[name]
    several = value if isinstance(value, list) else [value] if value else []
    return [_said({name: each}, name, where) for each in several]


def _check_there(record: dict[str, Any], name: str, where: str) -> None:
    if name not in record:
        what = (
            f"no column {name!r}; the columns are {there(record)}: name others as objective.columns"
        )
        raise DataError(where, what)


def _tokenized(examples: list[Example], tokenizer: Tokenizer) -> Iterator[list[list[int]]]:
    """The ids of each example's texts, nothing around them."""
    every = [text for example in examples for text in example.texts]
    found = iter(tokenizer.encode_batch(every))
    return ([next(found) for _ in example.texts] for example in examples)


def _fitted(
    example: Example,
    texts: list[list[int]],
    tokenizer: Tokenizer,
    policy: str,
    length: int,
    audit: PairAudit,
) -> list[np.ndarray] | None:
    """The texts framed, each within `length` ids, or None when the example is dropped."""
    room, found = length - len(tokenizer.framed([])), []
    for ids in texts:
        if (long := len(ids)) > room:
            if not audit.cut(example.where, long + length - room, length, policy):
                return None
            ids = cut(ids, room, policy)
        if not (framed := tokenizer.framed(ids)):
            what = "a text has no token; write one, or leave the record out"
            raise DataError(example.where, what)
        found.append(np.array(framed, np.uint32))
    return found


def _rows(examples: list[list[np.ndarray]], each: int, length: int, pad: int) -> Pairs:
    nothing = np.zeros(0, np.uint32)
    every = [ids for texts in examples for ids in (*texts, *[nothing] * (each - len(texts)))]
    ends = np.cumsum([0, *(ids.size for ids in every)], dtype=np.int64)
    words = np.array([_words(ids) for ids in every], np.int32).reshape(len(examples), 2 * each)
    return Pairs(np.concatenate([nothing, *every]), ends, words, length, pad)


def _words(ids: np.ndarray) -> np.ndarray:
    """Two int32 of a hash of a text; of none, 0."""
    digest = hashlib.blake2b(ids.tobytes(), digest_size=8).digest() if ids.size else bytes(8)
    return np.frombuffer(digest, "<i4")
