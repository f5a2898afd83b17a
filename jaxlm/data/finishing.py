"""The manifest over the shards of a tokenized corpus, when all of them are there."""

import shutil
from collections import Counter
from typing import Any

import numpy as np

from jaxlm.data import cache, corpus
from jaxlm.data.corpus import FILES, FORMAT, SHARDS, shard_folder
from jaxlm.data.encoding import sync
from jaxlm.data.tokenizing import (
    TEXTS,
    Part,
    Work,
    find_repeats,
    making,
    repeats_of,
    shard_json,
    shard_key,
    stale,
    write_json,
    writing,
)


def shards_of(work: Work, found: list[Part]) -> tuple[list[dict[str, Any]], list[int]]:
    """(what the shards of all parts say, those that are of files that have changed since)."""
    with writing(work):
        repeated = find_repeats(work, len(found)) if work.deduplicate else None
        shards, old = [], []
        for part in found:
            shards.append(shard_json(shard_folder(work.folder, part.number)))
            key = shard_key(work, part, repeats_of(work, repeated, part))
            if shards[-1].get("key") != key or (repeated is not None and stale(work, part)):
                old.append(part.number)
    return shards, old


def finish(work: Work, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the manifest over all shards, which is what they say in one. Returns it."""
    with writing(work):
        counts, lengths = Counter(), Counter()
        for shard in shards:
            counts.update(shard["counts"])
            lengths.update({int(most): times for most, times in shard["lengths"].items()})
        tokenizer = work.tokenizer()
        said = {
            "format": FORMAT,
            "options": work.options,
            "tokenizer": {"digest": tokenizer.digest, "vocab": tokenizer.vocab},
            "dtype": shards[0]["dtype"],
            "documents": sum(shard["documents"] for shard in shards),
            "tokens": sum(shard["tokens"] for shard in shards),
            "counts": dict(sorted(counts.items())),
            "lengths": {str(most): lengths[most] for most in sorted(lengths)},
            "offsets": _offsets(work, shards),
            "shards": shards,
        }
        with making(work) as new:
            write_json(new / corpus.MANIFEST, {**said, "digest": corpus.signed(said)})
            (new / corpus.MANIFEST).replace(work.folder / corpus.MANIFEST)
        used = {said["offsets"]["file"]}
        used |= {find_repeats(work, len(shards))} if work.deduplicate else set()
        _tidy(work, len(shards), used)
        cache.clear(work.folder)
        return said


def _offsets(work: Work, shards: list[dict[str, Any]]) -> dict[str, str]:
    """Write where every document of all shards starts; (file, digest), as the manifest has it."""
    with making(work) as new:
        before = 0
        with (new / "offsets").open("wb") as stream:
            stream.write(np.int64(0).astype("<i8").tobytes())
            for number, shard in enumerate(shards):
                ends = cache.mapped(shard_folder(work.folder, number) / FILES[1], "<i8")[1:]
                stream.write((ends + before).astype("<i8").tobytes())
                before += shard["tokens"]
            sync(stream)
        found = cache.sha256(new / "offsets")
        name = f"offsets-{found[:32]}"
        (new / "offsets").replace(work.folder / name)
    return {"file": name, "digest": found}


def _tidy(work: Work, count: int, used: set[str]) -> None:
    """Remove what is of parts that are no more, and what only another manifest was made from."""
    for path in work.folder.glob("offsets-*"):
        if path.name not in used:
            path.unlink(missing_ok=True)
    old = [path for path in work.folder.glob("repeats-*") if path.name not in used]
    for room in (SHARDS, TEXTS):
        old += [path for path in (work.folder / room).glob("[0-9]*") if int(path.name) >= count]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
