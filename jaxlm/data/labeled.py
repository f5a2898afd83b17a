"""Labeled texts, pairs and words of files, and which labels there are."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxlm.core.errors import DataError
from jaxlm.data import columns, files, labels
from jaxlm.data.cache import held_out
from jaxlm.data.columns import Columns, Wanted, problem
from jaxlm.data.labels import LabelSet
from jaxlm.data.lexemes import lexemes
from jaxlm.data.records import column, files_of, text
from jaxlm.data.sources import Source


class Labeled(NamedTuple):
    """One record."""

    where: str
    """The file and line it is from."""
    text: str
    """Of words: empty."""
    pair: str | None
    words: tuple[str, ...]
    labels: tuple[Any, ...]
    """Names: one, any number, or one for each word; of a regression numbers."""

    @property
    def said(self) -> str:
        """What it says, to be hashed: the same text with another label is held out with it."""
        return json.dumps([self.text, self.pair, self.words])


def read(
    source: Source, wanted: Wanted, told: Callable[[Columns], None] = lambda found: None
) -> Iterator[Labeled]:
    """The records of a source, their labels as they are written. told: of each file's columns.

    Raises DataError with file and line for missing columns, and for texts and labels that are none.
    """
    path = source.path
    for file in files_of(path):
        its: Columns | None = None
        for where, record in lexemes(file) if path == files.STDLIB else columns.named(file, wanted):
            if its is None:
                its = columns.find(record, wanted, where)
                told(its)
            elif gone := sorted(its.needed - record.keys()):
                what = f"no column {gone[0]!r}, which the records before it have"
                raise DataError(where, f"{what}; write it, or leave the record out")
            said = _said(record, its, wanted, where)
            yield Labeled(where, *said, _labels(record, its, wanted, len(said[2]), where))


def unlabeled(record: dict[str, Any], wanted: Wanted, where: str, *, pairs: bool = True) -> Labeled:
    """The text, pair or words of a record of which nothing else is needed. Raises DataError.

    pairs: whether pairs are looked for where no column is named.
    """
    found = columns.inputs(record, wanted, where, pairs=pairs, keys="--")
    return Labeled(where, *_said(record, found, wanted, where), ())


def texts(sources: Iterable[Source], wanted: Wanted, hold_out: float = 0.0) -> Iterator[str]:
    """Everything that is said in the records of these sources, but for the share held out."""
    for source in sources:
        for one in read(source, wanted):
            if not (hold_out and held_out(one.said, hold_out)):
                yield from filter(None, (one.text, one.pair, " ".join(one.words)))


def names(sources: Iterable[Source], wanted: Wanted) -> tuple[str, ...]:
    """The labels of the training data, sorted, numbers by what they count.

    Of a regression the name of its column, numbered where it holds several numbers. Raises
    DataError when there is one class only.
    """
    found: list[Columns] = []
    counted: Counter[str] = Counter()
    several, sets = 1, set[tuple[Any, ...]]()
    for source in (sources := tuple(sources)):
        for one in read(source, wanted, found.append):
            if problem(wanted) == "regression":
                several = len(one.labels)
                break
            counted.update(one.labels)
            sets.add(tuple(sorted(one.labels)) if len(sets) < 2 else ())
    if not found:
        raise DataError(sources[0].path, "holds no example; name other files")
    if problem(wanted) == "regression":
        name = str(found[0].label)
        return (name,) if several == 1 else tuple(f"{name}_{i}" for i in range(several))
    every = {*counted, *(name for each in found for name in each.flags)}
    where = ", ".join(source.path for source in sources)
    if problem(wanted) == "multi" and len(sets) == 1:
        what = f"every example has the labels {sorted(counted)}"[:80]
        raise DataError(where, f"{what}: there is nothing to tell apart; add examples of others")
    check_classes(counted, wanted, where)
    return labels.ordered(every)


def count(sources: Iterable[Source], wanted: Wanted, hold_out: float = 0.0) -> Counter[str]:
    """How often each of `wanted.labels` is there, but for the share of the records held out."""
    found, ids = Counter(dict.fromkeys(wanted.labels, 0)), LabelSet(wanted.labels)
    for source in sources:
        for one in read(source, wanted):
            if not (hold_out and held_out(one.said, hold_out)):
                found.update(ids.names[ids.id(name, one.where)] for name in one.labels)
    return found


def balanced(counted: Mapping[str, int], where: str) -> tuple[float, ...]:
    """Weights by which each label counts the same in all, 1 in the mean over examples.

    Raises DataError for a label without an example.
    """
    if empty := [name for name, number in counted.items() if not number]:
        what = f"no example has the label {empty[0]!r}, so it cannot be balanced"
        raise DataError(where, f"{what}; leave it out of objective.labels")
    total = sum(counted.values())
    return tuple(total / (len(counted) * number) for number in counted.values())


def check_classes(counted: Mapping[str, int], wanted: Wanted, where: str) -> None:
    """Raise DataError where every label is the same."""
    there = [name for name, number in counted.items() if number]
    if problem(wanted) in ("single", "tokens") and len(there) == 1:
        what = f"every label is {there[0]!r}: there is nothing to tell apart"
        raise DataError(where, f"{what}; add examples of others")


def _labels(
    record: dict[str, Any], its: Columns, wanted: Wanted, words: int, where: str
) -> tuple[Any, ...]:
    """What is written of a record's labels. words: how many it has."""
    kind, value = problem(wanted), record.get(its.label or "")
    if its.flags:
        set_ = (name for name in its.flags if labels.is_set(record[name], where, name))
        return tuple(set_)
    if kind == "regression":
        return tuple(labels.numbers_of(value, where))
    if kind == "multi":
        whole = isinstance(value, str) and value in wanted.labels  # a name may hold a comma
        return (value,) if whole else tuple(labels.names_of(value, where))
    if kind == "single":
        return (labels.name_of(value, where),)
    items = labels.items_of(value, where, str(its.label))
    if len(items) != words:
        raise DataError(where, f"{words} words and {len(items)} labels; write one for each word")
    return tuple(labels.name_of(each, where) for each in items)


def _said(
    record: dict[str, Any], its: Columns, wanted: Wanted, where: str
) -> tuple[str, str | None, tuple[str, ...]]:
    """(text, pair, words) of a record. Raises DataError for empty ones."""
    if problem(wanted) == "tokens":
        words = labels.items_of(column(record, its.text, where), where, its.text, str)
        if odd := [word for word in words if not isinstance(word, str)]:
            raise DataError(where, f"{its.text} holds {odd[0]!r}; write a list of texts")
        return "", None, tuple(words)
    said = [text(record, name, where) for name in (its.text, its.pair) if name]
    if empty := [n for n, s in zip((its.text, its.pair), said, strict=False) if not s.strip()]:
        raise DataError(where, f"{empty[0]} is empty; write at least one character")
    return said[0], said[1] if len(said) > 1 else None, ()
