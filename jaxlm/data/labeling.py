"""Opens sources of labeled texts, and tells what became of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlm.core.errors import DataError
from jaxlm.data import bins
from jaxlm.data.audit import Audit
from jaxlm.data.cache import Say, held_out
from jaxlm.data.classified import Answered, Classified, Reads
from jaxlm.data.columns import Columns, Problem, Wanted, problem
from jaxlm.data.examples import How
from jaxlm.data.labeled import Labeled, read
from jaxlm.data.labels import LabelSet
from jaxlm.data.pipeline import Opened, Opener
from jaxlm.data.sources import Source
from jaxlm.text.fitting import Fitted, check_room, fit, fit_words
from jaxlm.text.tokenizer import Tokenizer

TOLD = 20
"""Most labels that a line of an audit counts."""


@dataclass
class LabelAudit(Audit):
    """What became of the labeled texts of one source."""

    columns: list[str] = field(default_factory=list)
    pairs: int = 0
    """Examples of two texts."""
    tokens: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    """Of those that are trained on: label -> how many."""
    without: int = 0
    """Words that no token begins, or that were cut off: their labels are not learned."""

    def told(self, columns: Columns) -> None:
        """Of the columns of one more file."""
        if columns.said not in self.columns:
            self.columns.append(columns.said)

    @property
    def what(self) -> str:
        """Their columns."""
        return f"examples of {' and '.join(self.columns)}"

    def lines(self, pad_is_eos: bool) -> list[str]:
        """As a person reads it before the first step."""
        lines = super().lines(pad_is_eos)
        if self.labels:
            most = self.labels.most_common(TOLD)
            counts = ", ".join(f"{name} {count:,}" for name, count in most)
            more = f" and {len(self.labels) - TOLD:,} more" if len(self.labels) > TOLD else ""
            lines.append(f"  labels: {counts}{more}")
        if self.without:
            lines.append(f"  {self.without:,} words have no token of their own: not learned")
        return lines


def opener(
    tokenizer: Tokenizer,
    wanted: Wanted,
    how: How,
    reads: Reads,
    *,
    length: int,
    say: Say | None = None,
) -> Opener:
    """Opens sources of labeled texts. Raises DataError with file and line for what cannot be
    learned from, and when nothing is left, ConfigError where no text fits.
    """
    check_room(tokenizer, length)

    def opened(source: Source, hold_out: float) -> Opened:
        audit, splits = LabelAudit(source.path), ([], [])
        if problem(wanted) != "regression":
            audit.labels.update(dict.fromkeys(wanted.labels, 0))
        ids = LabelSet(wanted.labels)
        for one in read(source, wanted, audit.told):
            audit.examples += 1
            audit.pairs += one.pair is not None
            fitted = _fitted(one, tokenizer, how, length, audit)
            if fitted is None:
                continue
            held = hold_out > 0 and held_out(one.said, hold_out)
            answered = _answered(one, fitted, ids, problem(wanted))
            splits[held].append(answered)
            audit.held += held
            if not held:
                _count(answered, one, ids, problem(wanted), audit)
            if say and audit.examples % 10_000 == 0:
                say(f"reading {source.path}: {audit.examples:,} examples")
        rows = (_rows(split, wanted, how, reads, length, tokenizer.pad) for split in splits)
        train, kept = rows
        audit.rows = train.count
        audit.check()
        return Opened(train, kept, {"documents": audit.examples}, audit)

    return opened


def _fitted(
    one: Labeled, tokenizer: Tokenizer, how: How, length: int, audit: LabelAudit
) -> Fitted | None:
    """The text within `length` ids, or None when it is dropped."""
    if one.pair is not None:
        check_room(tokenizer, length, 2)
    limits: Any = {"length": length, "overlong": how.overlong, "where": one.where}
    fitted = (
        fit_words(tokenizer, one.words, **limits)
        if one.words
        else fit(tokenizer, one.text, one.pair, **limits)
    )
    if fitted.over and not audit.cut(one.where, length + fitted.over, length, how.overlong):
        return None
    if one.words and max(fitted.firsts) < 0:
        audit.drop(one.where, "no word with a token")
        return None
    return fitted


def _answered(one: Labeled, fitted: Fitted, ids: LabelSet, problem: Problem) -> Answered:
    """A text with the ids of its labels. Raises DataError for labels that are not in the set."""
    if problem == "regression":
        answer = np.array(one.labels, np.float32)
        if answer.size != len(ids.names):
            what = f"{answer.size} numbers where the others have {len(ids.names)}"
            raise DataError(one.where, f"{what}; write as many for each text")
    else:
        found = [ids.id(name, one.where) for name in one.labels]
        answer = np.array(found, np.int32)
    if problem == "multi":
        answer = np.isin(np.arange(len(ids.names)), answer).astype(np.float32)
    if problem == "tokens":
        at, labels = np.array(fitted.firsts), answer
        answer = np.full(len(fitted.ids), -1, np.int32)
        answer[at[at >= 0]] = labels[at >= 0]
    return Answered(np.array(fitted.ids, np.int32), np.array(fitted.types, np.int32), answer)


def _count(
    text: Answered, one: Labeled, ids: LabelSet, problem: Problem, audit: LabelAudit
) -> None:
    audit.kept += 1
    audit.tokens += text.ids.size
    if problem == "regression":
        return
    found = np.flatnonzero(text.answer) if problem == "multi" else text.answer[text.answer >= 0]
    audit.labels.update(ids.names[label] for label in found.tolist())
    audit.without += len(one.words) - found.size if problem == "tokens" else 0


def _rows(
    texts: Sequence[Answered], wanted: Wanted, how: How, reads: Reads, length: int, pad: int
) -> Classified:
    sizes = [text.ids.size for text in texts]
    plan = bins.plan(sizes, length) if how.packing else [[i] for i in range(len(sizes))]
    several = problem(wanted) in ("multi", "regression")
    width = len(wanted.labels) if several else 1
    rows = tuple(map(tuple, plan))
    return Classified(tuple(texts), rows, length, pad, problem(wanted), width, reads)
