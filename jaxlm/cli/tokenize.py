"""`jaxlm data tokenize`: documents to a folder of tokens, before any run, by many processes."""

import os
import sys
from typing import Annotated, Any

import typer

from jaxlm.core.errors import ConfigError

TIME = "04:00:00"
"""Of a job of SLURM, by default."""


def tokenize(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A file, folder or glob, as in data.train.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder of tokens to make.")],
    tokenizer: Annotated[
        str,
        typer.Option(help="A tokenizer.json, a .model, a folder with one, or hf://ORG/NAME."),
    ],
    field: Annotated[str, typer.Option(help="The column of records that holds the text.")] = "text",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes; 0 is one for each core.", show_default=False)
    ] = 0,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Every N-th file from the I-th on, from 0; by default that of SLURM's job array, "
            "else all.",
        ),
    ] = "",
    deduplicate: Annotated[
        bool, typer.Option("--deduplicate", help="Leave out texts equal to one before them.")
    ] = False,
    min_tokens: Annotated[
        int, typer.Option(min=0, help="Leave out shorter documents; with their end token.")
    ] = 0,
    max_tokens: Annotated[
        int, typer.Option(min=0, help="Leave out longer documents; 0 has no limit.")
    ] = 0,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="As data.parse_special.")
    ] = False,
    executor: Annotated[
        str, typer.Option(help="local, or datatrove's ray or slurm (extra datatrove).")
    ] = "local",
    partition: Annotated[str, typer.Option(help="Of SLURM.", show_default=False)] = "",
    time: Annotated[str, typer.Option(help="Of SLURM, for a job.")] = TIME,
) -> None:
    """Tokenize documents once, for any number of runs. Run the same line again to go on."""
    _check(source, out, executor, partition, time, shard)
    if max_tokens and min_tokens > max_tokens:
        raise ConfigError("--min-tokens", f"{min_tokens} is over --max-tokens={max_tokens}")
    how = {"field": field, "parse_special": parse_special, "deduplicate": deduplicate}
    how |= {"min_tokens": min_tokens, "max_tokens": max_tokens}
    from jaxlm.data.stopping import stopping

    with stopping():
        found = _run(source, out, tokenizer, how, executor, workers, shard, partition, time)
    if found is not None:
        print("\n".join(summary(out, found)))


def _check(source: str, out: str, executor: str, partition: str, time: str, shard: str) -> None:
    """Raise ConfigError for words that do not go together."""
    for name, given in (("SOURCE", source), ("OUT", out)):
        if not given:  # which would be the folder that one is in
            raise ConfigError(name, "is empty; name a file, a folder or a glob")
    if executor not in ("local", "ray", "slurm"):
        raise ConfigError("--executor", f"{executor!r} is none; write local, ray or slurm")
    if executor == "slurm" and not partition:
        raise ConfigError("--partition", "SLURM needs one; `sinfo` lists them")
    if executor != "slurm" and (partition or time != TIME):
        name = "--partition" if partition else "--time"
        raise ConfigError(name, f"is SLURM's; leave it out with --executor {executor}")
    if executor != "local" and shard:
        raise ConfigError("--shard", f"is for jobs of one's own; {executor} does all parts")
    if "://" in out:
        raise ConfigError("OUT", f"{out} is no local or mounted folder; write there and copy it")


def _run(
    source: str,
    out: str,
    tokenizer: str,
    how: dict[str, Any],
    executor: str,
    workers: int,
    shard: str,
    partition: str,
    time: str,
) -> dict[str, Any] | None:
    """The manifest, where it is there when this ends."""
    from jaxlm.data import engines, sources
    from jaxlm.data import workers as working
    from jaxlm.data.corpus import MANIFEST, opened_json
    from jaxlm.data.files import STDLIB
    from jaxlm.data.tokenizing import Work, claim
    from jaxlm.hub.fetch import local
    from jaxlm.text import tokenizer as tokenizers

    mine = working.share(shard, os.environ)
    named = "://" in source or source == STDLIB
    path = source if named else os.path.abspath(os.path.expanduser(source))
    sources.find(path)
    work = Work(path, os.path.abspath(os.path.expanduser(out)), **how)
    claim(work, tokenizers.load(local(tokenizer)))
    if executor == "slurm":
        engines.on_slurm(work, workers=workers, partition=partition, time=time, say=_say)
        return None
    if executor == "ray":
        engines.on_ray(work, workers=workers, say=_say)
        return opened_json(work.folder / MANIFEST)
    processes = workers or os.cpu_count() or 1
    return working.tokenize(work, workers=processes, mine=mine, say=_say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


GONE = {
    "empty": "had no text",
    "skipped": "files could not be decoded",
    "repeated": "repeated a text",
    "short": "were shorter than --min-tokens",
    "long": "were longer than --max-tokens",
}


def summary(out: str, manifest: dict[str, Any]) -> list[str]:
    """What was read, what of it is there, and how long documents are."""
    counts, documents = manifest["counts"], manifest["documents"]
    lines = [
        f"{out}: {documents:,} documents, {manifest['tokens']:,} tokens "
        f"in {len(manifest['shards'])} shards"
    ]
    lines += [f"{counts[name]:>14,} {what}" for name, what in GONE.items() if counts.get(name)]
    lines += [
        f"{times:>14,} of {int(most) // 2 + 1:,} to {int(most):,} tokens"
        for most, times in manifest["lengths"].items()
    ]
    return lines
