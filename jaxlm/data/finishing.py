"""The manifest over the shards of a tokenized corpus, when all of them are there."""

import shutil
from collections import Counter
from typing import Any

import numpy as np

from jaxlm.data import cache, corpus
from jaxlm.data.corpus import FILES, FORMAT, SHARD, SHARDS, shard_folder
from jaxlm.data.encoding import sync
from jaxlm.data.tokenizing import (
    TEXTS,
    Part,
    Work,
    find_repeats,
    repeats_of,
    shard_key,
    write_json,
    writing,
)


def shards_of(work: Work, found: list[Part]) -> tuple[list[dict[str, Any]], list[int]]:
    """(what the shards of all parts say, those that are of files that have changed since)."""
    with writing(work):
        repeated = find_repeats(work, len(found)) if work.deduplicate else None
        shards, old = [], []
        for part in found:
            shards.append(corpus.opened_json(shard_folder(work.folder, part.number) / SHARD))
            if shards[-1].get("key") != shard_key(work, part, repeats_of(work, repeated, part)):
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
        with cache.temporary(work.folder) as new:
            write_json(new / corpus.MANIFEST, {**said, "digest": corpus.signed(said)})
            (new / corpus.MANIFEST).replace(work.folder / corpus.MANIFEST)
        _tidy(work, len(shards), said["offsets"]["file"])
        return said


def _offsets(work: Work, shards: list[dict[str, Any]]) -> dict[str, str]:
    """Write where every document of all shards starts; (file, digest), as the manifest has it."""
    with cache.temporary(work.folder) as new:
        before = 0
        with (new / "offsets").open("wb") as stream:
            stream.write(np.int64(0).astype("<i8").tobytes())
            for number, shard in enumerate(shards):
                ends = corpus.mapped(shard_folder(work.folder, number) / FILES[1], "<i8")[1:]
                stream.write((ends + before).astype("<i8").tobytes())
                before += shard["tokens"]
            sync(stream)
        found = cache.sha256(new / "offsets")
        name = f"offsets-{found[:32]}"
        (new / "offsets").replace(work.folder / name)
    return {"file": name, "digest": found}


def _tidy(work: Work, count: int, offsets: str) -> None:
    """Remove what is of parts that are no more, and offsets of another manifest."""
    for path in work.folder.glob("offsets-*"):
        if path.name != offsets:
            path.unlink(missing_ok=True)
    for room in (SHARDS, TEXTS):
        for path in (work.folder / room).glob("[0-9]*"):
            if int(path.name) >= count:
                shutil.rmtree(path, ignore_errors=True)
