"""Sources and the targets that belong to them, as records have them.

The columns are given, or found by their names, the first of these that a record has; what is in
brackets may be empty or absent, and comes after the other column and a line break:

source                          target
inputs                          targets
instruction [input]             output
instruction [context]           response
input                           output
document, dialogue or text      summary
article                         highlights
prompt                          completion
question [context]              answer
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from jaxlm.core.errors import DataError
from jaxlm.data import files
from jaxlm.data.audit import Audit
from jaxlm.data.cache import held_out
from jaxlm.data.records import files_of, records, text, there
from jaxlm.data.signatures import signatures
from jaxlm.data.sources import Source

COLUMNS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("source",), "target"),
    (("inputs",), "targets"),
    (("instruction", "input"), "output"),
    (("instruction", "context"), "response"),
    (("input",), "output"),
    (("document",), "summary"),
    (("dialogue",), "summary"),
    (("text",), "summary"),
    (("article",), "highlights"),
    (("prompt",), "completion"),
    (("question", "context"), "answer"),
)
"""Of a source, of which the first is needed, and of its target."""


class How(Protocol):
    """What an objective says of its pairs."""

    @property
    def source(self) -> tuple[str, ...]:
        """Columns of a source; none: found."""
        ...

    @property
    def target(self) -> str | None:
        """The column of its target; None: found."""
        ...

    @property
    def target_length(self) -> int | None:
        """Most ids of a target; None: as many as of a source."""
        ...


class Example(NamedTuple):
    """What one record says."""

    where: str
    source: str
    target: str | None
    """None where it has none."""


@dataclass
class Seq2seqAudit(Audit):
    """What became of the pairs of one source of data."""

    columns: str = ""
    source_tokens: int = 0
    target_tokens: int = 0
    longest_source: int = 0
    longest_target: int = 0

    @property
    def what(self) -> str:
        """Their columns."""
        return f"pairs of {self.columns}"

    def lines(self, pad_is_eos: bool) -> list[str]:
        """As a person reads it before the first step."""
        return [
            *super().lines(pad_is_eos),
            f"  {self.source_tokens:,} tokens of sources, the longest {self.longest_source:,}; "
            f"{self.target_tokens:,} of targets, which are learned, the longest "
            f"{self.longest_target:,}",
        ]


def texts(sources: Iterable[Source], how: How, hold_out: float = 0.0) -> Iterator[str]:
    """All texts of these sources but those held out: what to train a tokenizer on."""
    for source in sources:
        for example in read_examples(source, how):
            if not hold_out or not held_out(example.source, hold_out):
                yield from (example.source, example.target or "")


def read_examples(source: Source, how: How, audit: Seq2seqAudit | None = None) -> Iterator[Example]:
    """The pairs of a source in the order of its files. Raises DataError with file and line."""
    audit, known = audit or Seq2seqAudit(source.path), Counter[str]()
    read = signatures if source.path == files.STDLIB else records
    for where, record in itertools.chain.from_iterable(map(read, files_of(source.path))):
        example, columns = pair_of(record, how, where)
        if example.target is None:
            raise DataError(where, f"no column {columns[-1]!r} with a target; write one")
        known[", ".join(columns)] += 1
        audit.columns = " and ".join(known)
        audit.examples += 1
        yield example


def pair_of(
    record: dict[str, Any], how: How, where: str, *, asked: bool = False
) -> tuple[Example, tuple[str, ...]]:
    """(the pair of a record, whose target may be missing; the columns that it is read from).

    asked: an empty target is a missing one: a table has no other. Raises DataError for columns that
    are not known, or hold no texts.
    """
    columns, wanted = _columns(record, how, where)
    if how.target is None and record.get(columns[0]) in (None, ""):
        what = f"{columns[0]} is empty beside {' and '.join(columns[1:]) or wanted}; write a text"
        raise DataError(where, f"{what}, or name others as objective.source")
    said = [text(record, name, where) for name in columns if record.get(name) is not None]
    if not (source := "\n".join(filter(None, said))):
        what = f"{' and '.join(columns)}: the source is empty; write a text"
        raise DataError(where, f"{what}, or leave the record out")
    absent = record.get(wanted) is None or (asked and record[wanted] == "")
    target = None if absent else text(record, wanted, where)
    if target == "":
        what = f"{wanted}: the target is empty; write a text, or leave the record out"
        raise DataError(where, what)
    return Example(where, source, target), (*columns, wanted)


def _columns(record: dict[str, Any], how: How, where: str) -> tuple[tuple[str, ...], str]:
    """Those of the source and of the target."""
    if how.target is not None:
        if lacking := [name for name in how.source if name not in record]:
            what = f"no column {lacking[0]!r}; the columns are {there(record)}"
            raise DataError(where, f"{what}: name others as objective.source")
        return how.source, how.target
    known = [(columns, target) for columns, target in COLUMNS if columns[0] in record]
    if not known:
        what = f"the columns are {there(record)}; name them: objective.source=COLUMN"
        raise DataError(where, f"{what} objective.target=COLUMN")
    columns, target = next((each for each in known if each[1] in record), known[0])
    return tuple(name for name in columns if name in record), target
