"""`jaxlm predict`: the labels of a file's texts."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TextIO

import typer

from jaxlm.cli.setup import (
    Adapters,
    Force,
    Model,
    Overlong,
    Platform,
    load,
    platform_of,
    start,
)
from jaxlm.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from jaxlm.inference.predict import Task

CHUNK = 4096
"""Texts that are read, sorted by length and written together."""


def predict(
    model: Model,
    input: Annotated[
        str, typer.Option(metavar="FILE", help=".jsonl, .json, .csv, .tsv, .parquet, or .txt.")
    ],
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A .jsonl to write; standard output by default."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="The column of texts, or of words; found by default.")
    ] = None,
    pair: Annotated[
        str | None, typer.Option(help="The column of second texts; found by default.")
    ] = None,
    overlong: Overlong = "error",
    adapter: Adapters = None,
    force: Force = False,
    platform: Platform = None,
) -> None:
    """Label texts: each line has the columns of the input, prediction and probabilities."""
    start(platform or platform_of(model))
    from jaxlm.inference import predict as predicting
    from jaxlm.inference.output import check_output
    from jaxlm.observe.metrics import finite

    if output is not None:
        check_output(output, input, (".jsonl",))
    loaded = load(model, adapter, force=force)
    task = predicting.task_of(loaded)
    own = _columns(model)
    if pair and task.problem == "tokens":
        raise ConfigError("--pair", "is of a classifier of texts, not of words; leave it out")
    asked = _asked(input, task, text or own.text, pair or own.pair, own.pairs)
    if (first := next(asked, None)) is None:
        raise DataError(input, "holds no text; name another file")
    records = chain([first], asked)
    with _opened(output) as out:
        while chunk := list(islice(records, CHUNK)):
            found = predicting.predict(loaded, [each for _, each in chunk], overlong)
            for (record, _), said in zip(chunk, found, strict=True):
                plain = {name: finite(value) for name, value in record.items()}
                line = json.dumps({**plain, **said}, ensure_ascii=False, default=str)
                print(line, file=out)


@contextmanager
def _opened(output: str | None) -> Iterator[TextIO]:
    """Where lines go: the file, which is there when all are, or standard output."""
    from jaxlm.inference.output import whole

    if output is None:
        with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as out:
            yield out
    else:
        with whole(output) as part, part.open("w", encoding="utf-8") as out:
            yield out


class Own(NamedTuple):
    """What a run learned from."""

    text: str | None = None
    """The column of texts or words that its configuration names."""
    pair: str | None = None
    pairs: bool = True
    """Whether pairs were among its examples; True where nobody knows."""


def _columns(model: str) -> Own:
    """What a run learned from; of an import or a Hugging Face folder nothing is known."""
    from jaxlm.config.load import load
    from jaxlm.training.reading import AUDIT

    config, audit = (os.path.join(model, name) for name in ("config.yaml", AUDIT))
    if not os.path.isfile(config):
        return Own()
    said, pairs = vars(load(config).objective), True
    if os.path.isfile(audit):
        with open(audit, encoding="utf-8") as file:
            pairs = any(each.get("pairs", True) for each in json.load(file))
    return Own(said.get("text") or said.get("words"), said.get("pair"), pairs)


def _asked(
    path: str, task: "Task", text: str | None, pair: str | None, pairs: bool
) -> Iterator[tuple[dict[str, Any], Any]]:
    """(a record, what is to be labeled of it) for each of a file. Raises DataError.

    pairs: whether pairs are looked for where no column is named.
    """
    from jaxlm.data import columns, labeled, lines
    from jaxlm.inference.predict import Asked

    named = {"text": text, "pair": pair, "words": text, "label": None}
    wanted: Any = SimpleNamespace(**task._asdict(), type=task.type, **named)
    for where, found in lines.read(path, partial(columns.named, wanted=wanted)):
        if isinstance(found, str):
            if pair:
                raise ConfigError("--pair", f"{path} has no columns; leave it out")
            yield {"text": found}, Asked(where, found, None, (*found.split(),))
            continue
        if taken := sorted(found.keys() & {"prediction", "probabilities"}):
            what = f"has a column {taken[0]!r}, which is what is written beside the others"
            raise DataError(where, f"{what}; rename it")
        one = labeled.unlabeled(found, wanted, where, pairs=pairs)
        yield found, Asked(where, one.text, one.pair, one.words)
