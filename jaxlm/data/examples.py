"""Examples to learn answers from: read, tokenized, checked, and packed into rows."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from jaxlm.core.errors import DataError
from jaxlm.data import bins, files, packing
from jaxlm.data.audit import Audit
from jaxlm.data.cache import Say, held_out
from jaxlm.data.formats import Example, Format, detect
from jaxlm.data.packing import Batch
from jaxlm.data.records import files_of, records
from jaxlm.data.signatures import signatures
from jaxlm.data.sources import Source
from jaxlm.text import chat
from jaxlm.text.tokenizer import Tokenizer


class How(Protocol):
    """What the configuration says of examples."""

    @property
    def template(self) -> str | None:
        """Name of a built-in chat template; None is the tokenizer's own."""
        ...

    @property
    def learn(self) -> str:
        """responses, last or all."""
        ...

    @property
    def overlong(self) -> str:
        """error, truncate-left, truncate-right or drop."""
        ...

    @property
    def packing(self) -> bool:
        """Several examples in a row."""
        ...


@dataclass
class ExampleAudit(Audit):
    """What became of the examples of one source."""

    format: str = ""
    template: str = ""
    tokens: int = 0
    trained: int = 0
    """Tokens that are learned."""
    ends_trained: int = 0
    """Examples whose last learned token ends generation."""
    doubled_bos: int = 0
    """Examples that begin with two start tokens."""
    unknown: Counter[str] = field(default_factory=Counter)
    """What the template writes like a special token, and is none -> in how many examples."""

    @property
    def what(self) -> str:
        """Their format, and how chats are written."""
        how = f", written with {self.template}" if self.template else ""
        return f"examples of {self.format}{how}"

    def lines(self, pad_is_eos: bool) -> list[str]:
        """As a person reads it before the first step."""
        share = self.trained / max(self.tokens, 1)
        lines = [
            *super().lines(pad_is_eos),
            f"  {self.trained:,} of {self.tokens:,} tokens are learned ({share:.1%}); "
            f"the end token in {self.ends_trained:,} of {self.kept:,} examples",
        ]
        if self.doubled_bos:
            lines.append(f"  {self.doubled_bos:,} examples begin with two start tokens")
        for name, count in self.unknown.items():
            what = "is no token of this tokenizer, and is written in letters"
            lines.append(f"  {name} of the template {what}: {count:,} examples")
        if pad_is_eos:
            lines.append("  padding is the end token: it is told apart by position, not by its id")
        return lines


class Tokenized(NamedTuple):
    """One example: its ids, and which of them are learned."""

    ids: np.ndarray
    """uint32 [T]."""
    learned: np.ndarray
    """bool [T]."""


@dataclass(frozen=True)
class Packed:
    """Examples as rows of `length`: a segment each, positions from 0."""

    examples: tuple[Tokenized, ...]
    plan: tuple[tuple[int, ...], ...]
    """Of each row, which examples it holds."""
    length: int
    pad: int

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.plan)

    @property
    def tokens(self) -> int:
        """Of all examples."""
        return sum(example.ids.size for example in self.examples)

    @property
    def digest(self) -> str:
        """Of every example and of the rows they are in."""
        found = hashlib.sha256(repr(self.plan).encode())
        for example in self.examples:
            found.update(example.ids.tobytes() + example.learned.tobytes())
        return found.hexdigest()

    def widths(self, index: np.ndarray) -> dict[str, int]:
        """Up to the end of the longest; all where some row holds several examples."""
        if len(self.examples) > len(self.plan):
            return {}
        longest = max(self.examples[self.plan[i][0]].ids.size - 1 for i in index.tolist())
        return dict.fromkeys(packing.NAMES, longest)

    def take(self, index: np.ndarray, drawn: np.ndarray) -> Batch:
        """The rows `index` [B]; see `packing.windows`. An example's first token is no target."""
        batch = packing.blank(index.size, self.length, self.pad)
        for row, number in enumerate(index.tolist()):
            start = 0
            for segment, which in enumerate(self.plan[number], 1):
                ids, learned = self.examples[which]
                at = packing.lay(batch, row, start, segment, ids[:-1])
                batch["targets"][row, at] = ids[1:]
                batch["weights"][row, at] = learned[1:]
                start = at.stop
        return batch


def open_examples(
    source: Source, tokenizer: Tokenizer, how: How, *, length: int, hold_out: float, say: Say | None
) -> tuple[Packed, Packed, ExampleAudit]:
    """(examples to train on, those held out, what became of all of them) of one source.

    hold_out: the share that is held out, by a hash of what a record says. Raises DataError with
    file and line for what cannot be learned from, and when nothing is left.
    """
    audit, splits = ExampleAudit(source.path), ([], [])
    for example in read_examples(source, audit):
        audit.examples += 1
        one = _fitted(_tokenized(example, tokenizer, how, audit), example, how, length, audit)
        if one is None:
            continue
        held = hold_out > 0 and held_out(said(example), hold_out)
        splits[held].append(one)
        audit.held += held
        if not held:
            _count(one, tokenizer, audit)
        if say and audit.examples % 10_000 == 0:
            say(f"reading {source.path}: {audit.examples:,} examples")
    train, kept = (_packed(split, how, length, tokenizer.pad) for split in splits)
    audit.rows = train.count
    audit.check()
    return train, kept, audit


def texts(sources: Iterable[Source], hold_out: float = 0.0) -> Iterator[str]:
    """Everything that is said in the examples of these sources, but for the share held out."""
    for source in sources:
        for example in read_examples(source):
            if hold_out and held_out(said(example), hold_out):
                continue
            for message in example.messages:
                yield from (str(message[key]) for key in ("content", "input") if message.get(key))
            yield from filter(None, (example.prompt, example.completion))


def read_examples(source: Source, audit: ExampleAudit | None = None) -> Iterator[Example]:
    """The examples of a source, as text; `audit` gets their format. Raises DataError."""
    path, audit = source.path, audit or ExampleAudit(source.path)
    read = signatures if path == files.STDLIB else records
    for file in files_of(path):
        format: Format | None = None
        for where, record in read(file):
            if format is None or not set(format.needs) <= record.keys():
                format = detect(record.keys(), where, source.field)
                if format.name not in audit.format.split(" and "):
                    audit.format += " and " * bool(audit.format) + format.name
            yield format.read(record, where)


def said(example: Example) -> str:
    """What an example says, to be hashed."""
    return json.dumps(example._replace(where=""), sort_keys=True, default=str)


def is_kept(example: Example, tokenizer: Tokenizer, how: How, length: int) -> bool:
    """Whether `open_examples` keeps this one. Raises DataError as that does."""
    audit = ExampleAudit("")
    return (
        _fitted(_tokenized(example, tokenizer, how, audit), example, how, length, audit) is not None
    )


def _tokenized(example: Example, tokenizer: Tokenizer, how: How, audit: ExampleAudit) -> Tokenized:
    if not example.messages:
        return _of_pair(example, tokenizer, how)
    template = template_for(tokenizer, how, example)
    audit.template = audit.template or (how.template or "the model's own chat template")
    silent = [i for i, message in enumerate(example.messages, 1) if "content" not in message]
    if silent and how.template:
        what = f"message {silent[0]} has no content, which {how.template} cannot write; add a text"
        raise DataError(example.where, f"{what}, or use the tokenizer's own template")
    try:
        stretches = template.answers(tokenizer, example.messages, tools=example.tools)
        if odd := template.unknown(tokenizer):
            text = template.render(example.messages, tools=example.tools).text
            audit.unknown.update(name for name in odd if name in text)
    except DataError as error:
        raise DataError(example.where, f"{error.where}: {error.what}") from None
    said = [index for _, index in stretches if index is not None]
    if not any(part for part, index in stretches if index is not None):
        _check_silence(example, audit.template)
    wanted = {
        index
        for index in (said[-1:] if how.learn == "last" else said)
        if example.messages[index].get("train", example.messages[index].get("weight", True))
    }
    ids = [number for part, _ in stretches for number in part]
    learned = [index in wanted or (how.learn == "all") for part, index in stretches for _ in part]
    if stretches[-1][0] == [] and said and said[-1] in wanted and ids[-1] not in tokenizer.ends:
        ids, learned = [*ids, tokenizer.eos], [*learned, True]  # else it never learns to stop
    return Tokenized(np.array(ids, np.uint32), np.array(learned, bool))


def _check_silence(example: Example, template: str) -> None:
    """Raise DataError where a template has written nothing of answers that there are."""
    if any(m["role"] == "assistant" and m.get("content") for m in example.messages):
        what = "writes nothing of the answers, so nothing would be learned; choose another"
        raise DataError(example.where, f"{template} {what} with examples.template")


def _of_pair(example: Example, tokenizer: Tokenizer, how: How) -> Tokenized:
    """Prompt and completion by themselves, as a model meets them when it answers."""
    prompt = tokenizer.beginning(example.prompt)
    if example.prompt:
        said = chat.continued(tokenizer, example.completion)
    else:
        said = tokenizer.encode(example.completion, add_special=False)
    ids = [*prompt, *said, tokenizer.eos]
    all_of_it = how.learn == "all" or not example.prompt
    learned = [all_of_it] * len(prompt) + [True] * (len(said) + 1)
    return Tokenized(np.array(ids, np.uint32), np.array(learned, bool))


def template_for(tokenizer: Tokenizer, how: How, example: Example) -> chat.ChatTemplate:
    """How a chat is written. Raises DataError for a tokenizer without a template of its own."""
    if how.template:
        return chat.builtin(tokenizer, how.template)
    if not tokenizer.templates:
        what = "the tokenizer has no chat template; add examples.template=alpaca, plain or another"
        raise DataError(example.where, what)
    return chat.of(tokenizer)


def _fitted(
    one: Tokenized, example: Example, how: How, length: int, audit: ExampleAudit
) -> Tokenized | None:
    """The example within length + 1 ids, or None when it is dropped."""
    if (long := one.ids.size - 1) > length:
        if not audit.cut(example.where, long, length, how.overlong):
            return None
        kept = slice(length + 1) if how.overlong == "truncate-right" else slice(-length - 1, None)
        one = Tokenized(one.ids[kept], one.learned[kept])
    if not one.learned[1:].any():
        audit.drop(example.where, "no learned token")
        return None
    return one


def _count(one: Tokenized, tokenizer: Tokenizer, audit: ExampleAudit) -> None:
    audit.kept += 1
    audit.tokens += one.ids.size
    audit.trained += int(one.learned[1:].sum())
    audit.ends_trained += int(one.ids[np.flatnonzero(one.learned)[-1]]) in tokenizer.ends
    audit.doubled_bos += tokenizer.bos is not None and one.ids[:2].tolist() == [tokenizer.bos] * 2


def _packed(examples: list[Tokenized], how: How, length: int, pad: int) -> Packed:
    sizes = [example.ids.size - 1 for example in examples]
    rows = bins.plan(sizes, length) if how.packing else [[i] for i in range(len(sizes))]
    return Packed(tuple(examples), tuple(map(tuple, rows)), length, pad)
