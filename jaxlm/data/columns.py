"""Where a record has its text and its labels: columns that are named, or found."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

from jaxlm.core.errors import DataError
from jaxlm.data import files, labels
from jaxlm.data.records import Record, fields, records, table, there

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text", "pair"),
)
TEXTS = ("text", "sentence")
WORDS = ("tokens", "words", "text")
LABELS = ("label", "labels", "class", "target", "score")
TAGS = ("tags", "ner_tags", "labels", "label")
"""Columns that are found, in the order in which they are tried; pairs before single texts."""

Problem = Literal["single", "multi", "regression", "tokens"]


class Wanted(Protocol):
    """What the configuration says of labels. One of texts also has `problem`, `text` and `pair`,
    one of words `words`: the columns, or None.
    """

    @property
    def type(self) -> str:
        """classification or token_classification."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Their names, in the order of their ids."""
        ...

    @property
    def label(self) -> str | None:
        """The column of labels."""
        ...


class Columns(NamedTuple):
    """Where a record has what."""

    text: str
    """Of words: their list."""
    pair: str | None = None
    label: str | None = None
    flags: tuple[str, ...] = ()
    """Instead of `label`: a column of 0 and 1 for each label."""

    @property
    def needed(self) -> set[str]:
        """Their names."""
        return {name for name in (*self[:3], *self.flags) if name}

    @property
    def said(self) -> str:
        """As a person reads it."""
        given = " + ".join(filter(None, (self.text, self.pair)))
        return f"{given}, {self.label or ' + '.join(self.flags)}"


def problem(wanted: Any) -> Problem:
    """What is to be told: of a text one label, any number of them or numbers, or of each word."""
    return "tokens" if wanted.type == "token_classification" else wanted.problem


def find(record: Mapping[str, Any], wanted: Wanted, where: str) -> Columns:
    """The columns of a record's texts and labels. Raises DataError, with those that are there."""
    found = inputs(record, wanted, where)
    known = TAGS if problem(wanted) == "tokens" else LABELS
    free = [name for name in known if name in record and name not in found[:2]]
    label = wanted.label or next(iter(free), None)
    if label is None and problem(wanted) == "multi" and (flags := _flags(record, found, wanted)):
        return found._replace(flags=flags)
    if label not in record:
        _missing(record, "label", wanted.label, known, where)
    return found._replace(label=label)


def inputs(
    record: Mapping[str, Any],
    wanted: Any,
    where: str,
    *,
    pairs: bool = True,
    keys: str = "objective.",
) -> Columns:
    """The columns of a record's texts alone. Raises DataError, with those that are there.

    pairs: whether two texts that are read together are looked for. keys: what comes before the
    name of what would name another, in errors.
    """
    if problem(wanted) == "tokens":
        words = wanted.words or next((name for name in WORDS if name in record), None)
        if words not in record:
            _missing(record, "words", wanted.words, WORDS, where, keys)
        return Columns(str(words))
    text, pair = wanted.text, wanted.pair
    if pairs and not text and not pair:
        text, pair = next((p for p in PAIRS if p[0] in record and p[1] in record), (None, None))
    text = text or next((name for name in TEXTS if name in record), None)
    if text not in record:
        known = (*TEXTS, *(" + ".join(pair) for pair in PAIRS if pairs))
        _missing(record, "text", wanted.text, known, where, keys)
    if pair and pair not in record:
        _missing(record, "pair", pair, (), where, keys)
    return Columns(str(text), pair)


def named(file: Any, wanted: Any) -> Iterator[Record]:
    """The records of a file, with `text, label` or `text, pair, label` for the columns of a table
    without a line of names.
    """
    given = problem(wanted) == "tokens" or wanted.text or wanted.pair or wanted.label
    if given or files.suffix(file) not in (".csv", ".tsv"):
        return records(file)
    return table(file, _headless(file, wanted))


def _headless(file: Any, wanted: Wanted) -> tuple[str, ...] | None:
    """Names for the columns where the first line is a record: it ends like another record, or with
    a label or a number. None where it names the columns.
    """
    rows = fields(file)
    first = next(rows, [])
    if len(first) not in (2, 3) or {*TEXTS, *(name for p in PAIRS for name in p)} & {*first}:
        return None
    if problem(wanted) == "regression":
        alike = _is_number(first[-1])
    else:
        alike = first[-1] in wanted.labels or any(row[-1] == first[-1] for row in rows)
    return ("text", *["pair"] * (len(first) - 2), "label") if alike else None


def _is_number(text: str) -> bool:
    try:
        labels.numbers_of(text, "")
    except DataError:
        return False
    return True


def _flags(record: Mapping[str, Any], found: Columns, wanted: Wanted) -> tuple[str, ...]:
    """The columns of labels, where each has its own: those named, or all that are 0 or 1."""
    if wanted.labels:
        return wanted.labels if set(wanted.labels) <= record.keys() else ()
    others = [name for name in record if name not in found[:2]]
    return tuple(name for name in others if labels.is_flag(record[name]))


def _missing(
    record: Mapping[str, Any],
    key: str,
    given: str | None,
    known: tuple[str, ...],
    where: str,
    keys: str = "objective.",
) -> NoReturn:
    wrong = f"no column {given!r}" if given else f"no column of {key} ({', '.join(known)})"
    what = f"{wrong}; the columns are {there(record)}: name one as {keys}{key}"
    raise DataError(where, what)
