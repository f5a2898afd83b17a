"""Examples as questions: what a model is asked as it was trained to be, and what is expected."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jaxlm.core.errors import DataError
from jaxlm.data import lines, seq2seq
from jaxlm.data.cache import held_out
from jaxlm.data.examples import How, is_kept, read_examples, said, template_for
from jaxlm.data.formats import ROLES, Example, detect
from jaxlm.data.paired import Fitting
from jaxlm.data.sources import Source
from jaxlm.text.tokenizer import Tokenizer

ANSWERS = {"prompt": "completion", "instruction": "output"}
"""Columns that a question may be without, by those that ask."""


class Asked(NamedTuple):
    """One question."""

    ids: list[int]
    """The prompt."""
    text: str
    """What a person reads of it."""
    expected: str | None
    """None when any answer will do."""
    where: str
    """The file and line it is from."""


def read_file(path: str, tokenizer: Tokenizer, how: How, count: int) -> list[Asked]:
    """The first `count` questions of a file: records as examples are, whose answers may be missing,
    or lines of text. Raises DataError with file and line, and when there are none.
    """
    asked = itertools.islice(_of_file(path), count)
    if not (found := [_asked(each, tokenizer, how) for each in asked]):
        raise DataError(path, "holds no prompt; write at least one")
    return found


def held(
    sources: Iterable[Source],
    share: float | None,
    tokenizer: Tokenizer,
    how: How,
    count: int,
    *,
    length: int,
) -> list[Asked]:
    """The first `count` validation examples: of `sources`, or of the share that they hold out.

    length: of rows, for which some examples are dropped; they are not asked either.
    """
    every = itertools.chain.from_iterable(read_examples(source) for source in sources)
    held = (each for each in every if share is None or held_out(said(each), share))
    chosen = (each for each in held if is_kept(each, tokenizer, how, length))
    return [_asked(each, tokenizer, how) for each in itertools.islice(chosen, count)]


def read_sources(path: str, tokenizer: Tokenizer, how: seq2seq.How, count: int) -> list[Asked]:
    """As `read_file`, of sources for an encoder-decoder, whose targets may be missing."""
    found = itertools.islice(lines.read(path), count)
    pairs = [
        seq2seq.Example(where, said, None)
        if isinstance(said, str)
        else seq2seq.pair_of(said, how, where, asked=True)[0]
        for where, said in found
    ]
    if not pairs:
        raise DataError(path, "holds no prompt; write at least one")
    return [
        Asked(tokenizer.encode(each.source), each.source, each.target, each.where) for each in pairs
    ]


def held_sources(
    sources: Iterable[Source], share: float | None, fitting: Fitting, how: seq2seq.How, count: int
) -> list[Asked]:
    """As `held`, of pairs: their sources as they are in rows, and those that are dropped not."""
    every = itertools.chain.from_iterable(seq2seq.read_examples(each, how) for each in sources)
    held = (each for each in every if share is None or held_out(each.source, share))
    fitted = ((each, fitting.pair(each)) for each in held)
    found = (
        Asked(pair[0].tolist(), each.source, each.target, each.where)
        for each, pair in fitted
        if pair is not None
    )
    return [*itertools.islice(found, count)]


def _of_file(path: str) -> Iterator[Example]:
    for where, found in lines.read(path):
        if isinstance(found, str):
            yield Example(where, prompt=found)
        else:
            whole = _answered(found)
            yield detect(whole.keys(), where).read(whole, where)


def _answered(record: dict[str, Any]) -> dict[str, Any]:
    """The record with an empty answer where it has none."""
    nothing = {"role": "assistant", "content": ""}
    for asks, answers in ANSWERS.items():
        if asks in record and record.get(answers) is None:
            return {**record, answers: [nothing] if isinstance(record[asks], list) else ""}
    for name in ("messages", "conversations"):
        said = record.get(name)
        if not (isinstance(said, list) and said and isinstance(said[-1], dict)):
            continue
        if "role" not in said[-1] and ROLES.get(str(said[-1].get("from"))) != "assistant":
            return {**record, name: [*said, {"from": "gpt", "value": ""}]}
        if "role" in said[-1] and said[-1]["role"] != "assistant":
            return {**record, name: [*said, nothing]}
    return record


def _asked(example: Example, tokenizer: Tokenizer, how: How) -> Asked:
    if not example.messages:
        ids = tokenizer.beginning(example.prompt)
        if not ids:
            raise DataError(example.where, "the prompt is empty; write at least one character")
        return Asked(ids, example.prompt, example.completion or None, example.where)
    stretches = template_for(tokenizer, how, example).answers(
        tokenizer, example.messages, tools=example.tools
    )
    last = max(i for i, each in enumerate(example.messages) if each["role"] == "assistant")
    before = itertools.takewhile(lambda stretch: stretch[1] != last, stretches)
    said = next(iter(example.messages[:last][::-1]), {})
    text = "\n".join(str(said[key]) for key in ("content", "input") if said.get(key))
    expected = example.messages[last].get("content") or None
    return Asked([i for ids, _ in before for i in ids], text, expected, example.where)
