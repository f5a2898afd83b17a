"""`jaxlm predict`: the labels of a file's texts."""

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxlm.cli.setup import Model, Platform, platform_of, start
from jaxlm.core.errors import ConfigError

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
    overlong: Annotated[
        str, typer.Option(help="Of texts too long: error, truncate-right or truncate-left.")
    ] = "error",
    platform: Platform = None,
) -> None:
    """Label texts: each line has the columns of the input, prediction and probabilities."""
    from jaxlm.text.fitting import TRUNCATES

    if overlong not in ("error", *TRUNCATES):
        known = " or ".join(("error", *TRUNCATES))
        raise ConfigError("--overlong", f"{overlong!r} is none of {known}")
    start(platform or platform_of(model))
    from jaxlm.inference import model as models
    from jaxlm.inference import predict as predicting

    loaded = models.load(model)
    task = predicting.task_of(loaded)
    records = _asked(input, task, text, pair)
    with _written(output, input) as out:
        while chunk := list(islice(records, CHUNK)):
            found = predicting.predict(loaded, [each for _, each in chunk], overlong)
            for (record, _), said in zip(chunk, found, strict=True):
                line = json.dumps({**record, **said}, ensure_ascii=False, default=str)
                print(line, file=out)
    if output:
        os.replace(f"{output}.new", output)


def _written(output: str | None, input: str) -> Any:
    """Where lines go: beside the file until all are there."""
    if output is None:
        return os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    if Path(output).resolve() == Path(input).resolve():
        raise ConfigError("--output", f"{output} is the input; name another file")
    return open(f"{output}.new", "w", encoding="utf-8")


def _asked(
    path: str, task: "Task", text: str | None, pair: str | None
) -> Iterator[tuple[dict[str, Any], Any]]:
    """(a record, what is to be labeled of it) for each of a file. Raises DataError."""
    from jaxlm.data import columns, labeled, lines
    from jaxlm.inference.predict import Asked

    named = {"text": text, "pair": pair, "words": text, "label": None}
    wanted: Any = SimpleNamespace(**task._asdict(), type=task.type, **named)
    for where, found in lines.read(path, partial(columns.named, wanted=wanted)):
        if isinstance(found, str):
            yield {"text": found}, Asked(where, found, None, (*found.split(),))
            continue
        one = labeled.unlabeled(found, wanted, where)
        yield found, Asked(where, one.text, one.pair, one.words)
