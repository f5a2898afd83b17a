"""A folder of tokens that `jaxlm data tokenize` made, which training reads as it is.

```
tokens.json            what was asked for: the source, the tokenizer's digest, the options
tokenizer/             the tokenizer
shards/00000/          ids, offsets and hashes of the documents of one part of the source
    train.ids          [T] uint16 or uint32, each document [bos] ids eos
    train.offsets      [documents + 1] int64, where each starts, then T
    train.hashes       [documents, 16] bytes: sha256 of each text, the first half
    shard.json         its counts and digests
offsets-DIGEST         [documents + 1] int64 over all shards
manifest.json          the shards in order, digests of their files and of what they are from
```

The manifest is written last. ids and offsets are those of the cache (cache.py): one reader, and the
rows are those of the texts themselves.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.core.errors import DataError
from jaxlm.data.cache import Cached, Say, Tokens, default_folder, digest, limit, mapped
from jaxlm.data.files import local, reading
from jaxlm.data.stretches import Stretches
from jaxlm.text.tokenizer import Tokenizer

MANIFEST, SHARD, SHARDS, TOKENIZER = "manifest.json", "shard.json", "shards", "tokenizer"
FORMAT = 1
"""Raise it when what is written changes."""
FILES = ("train.ids", "train.offsets", "train.hashes")
HASH = 16
"""Bytes that are kept of a text's sha256."""
GONE = FileNotFoundError, NotADirectoryError


def opened_json(path: Path) -> dict[str, Any]:
    """What a file of JSON says; empty where there is none. Raises DataError for a damaged one."""
    with reading(path):
        try:
            found = json.loads(path.read_bytes())
        except GONE:
            return {}
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        return found


def signed(manifest: dict[str, Any]) -> str:
    """The digest of all that a manifest says but its own digest."""
    said = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def shard_folder(folder: Path, number: int) -> Path:
    """Where the shard of that number is."""
    return folder / SHARDS / f"{number:05d}"


def damage(folder: Path, digests: dict[str, str], root: Path) -> str:
    """What is wrong with the files of a shard; empty where nothing is. root: as of cache.digest.

    Raises DataError for one that cannot be read.
    """
    for name in FILES:
        try:
            found = digest(folder / name, root)
        except DataError as error:
            if isinstance(error.__cause__, GONE):
                return f"{name} is missing"
            raise
        if found != digests[name]:
            return f"{name} has sha256 {found[:12]}, not {digests[name][:12]}"
    return ""


def _size(path: Path) -> int | None:
    """Bytes of a file; None where there is none. Raises DataError."""
    with reading(path):
        try:
            return path.stat().st_size
        except GONE:
            return None


def _missized(folder: Path, shard: dict[str, Any], dtype: str) -> str:
    """As `damage`, by the sizes of the files alone."""
    documents = shard["documents"]
    sizes = shard["tokens"] * np.dtype(dtype).itemsize, 8 * (documents + 1), HASH * documents
    for name, size in zip(FILES, sizes, strict=True):
        if (found := _size(folder / name)) is None:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} bytes, not {size:,}"
    return ""


def open_corpus(
    path: str,
    tokenizer: Tokenizer,
    *,
    parse_special: bool = False,
    hold_out: float = 0.0,
    cache: str | Path | None = None,
    say: Say | None = None,
    verify: bool = True,
) -> Cached:
    """The tokens in a folder, every shard of which has its digest; as of cache.tokenized.

    Digests of large files are remembered in `cache`. verify: compare digests, not sizes alone,
    which is enough where another process verifies. Raises DataError for a folder that is not
    finished, was made with another tokenizer, is damaged, or cannot be read.
    """
    folder = local(path)
    manifest = _manifest(folder, tokenizer, parse_special)
    root = default_folder() if cache is None else Path(cache).expanduser()
    with suppress(OSError):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check(folder, manifest, root, verify)
    if say:
        how = "verified" if verify else "of their sizes"
        say(f"{path}: {manifest['tokens']:,} tokens in {len(manifest['shards'])} shards, {how}")
    whole = hashlib.sha256(json.dumps([manifest["digest"], hold_out]).encode()).hexdigest()[:32]
    held = _held(folder, manifest, hold_out)
    counts = {"documents": manifest["documents"], "empty": manifest["counts"].get("empty", 0)}
    train = None if held is None else np.flatnonzero(~held)
    out = np.flatnonzero(() if held is None else held)
    return Cached(
        _stream(folder, manifest, train, f"{whole}-train"),
        _stream(folder, manifest, out, f"{whole}-held"),
        counts,
    )


def _manifest(folder: Path, tokenizer: Tokenizer, parse_special: bool) -> dict[str, Any]:
    manifest = opened_json(folder / MANIFEST)
    if not manifest:
        what = "has no manifest yet: not all of it is tokenized"
        raise DataError(str(folder), f"{what}; run the same `jaxlm data tokenize` again")
    if manifest.get("format") != FORMAT or manifest.get("digest") != signed(manifest):
        what = f"is damaged, or no manifest of format {FORMAT}; `jaxlm data tokenize` makes it anew"
        raise DataError(str(folder / MANIFEST), what)
    made, ours = manifest["tokenizer"]["digest"], tokenizer.digest
    if made != ours:
        what = f"is of the tokenizer {made[:12]}, and the run has {ours[:12]}"
        advice = f"set tokenizer.path={folder / TOKENIZER}, or tokenize it into another folder"
        raise DataError(str(folder), f"{what}; {advice}")
    if manifest["options"]["parse_special"] != parse_special:
        now = str(not parse_special).lower()
        raise DataError(
            str(folder), f"was made with parse_special={now}; set data.parse_special={now}"
        )
    return manifest


def _check(folder: Path, manifest: dict[str, Any], root: Path, verify: bool) -> None:
    """Raise DataError for a file that is not as the manifest says. Arguments: of open_corpus."""
    for number, shard in enumerate(manifest["shards"]):
        where = shard_folder(folder, number)
        if verify:
            wrong = damage(where, shard["digests"], root)
        else:
            wrong = _missized(where, shard, manifest["dtype"])
        if wrong:
            raise DataError(str(where), f"{wrong}; `jaxlm data tokenize` makes it anew")
    offsets, size = folder / manifest["offsets"]["file"], 8 * (manifest["documents"] + 1)
    if _size(offsets) != size or (
        verify and digest(offsets, root) != manifest["offsets"]["digest"]
    ):
        raise DataError(str(offsets), "is damaged; `jaxlm data tokenize` makes it anew")


def _held(folder: Path, manifest: dict[str, Any], share: float) -> np.ndarray | None:
    """bool [documents]: which are held out, by the same hash as of texts; None where none is."""
    if not share:
        return None
    found = [np.zeros(0, bool)]
    for number in range(len(manifest["shards"])):
        hashes = mapped(shard_folder(folder, number) / FILES[2], ">u8").reshape(-1, HASH // 8)
        found.append(hashes[:, 0].astype(np.uint64) < np.uint64(limit(share)))
    return np.concatenate(found)


def _stream(folder: Path, manifest: dict[str, Any], chosen: np.ndarray | None, name: str) -> Tokens:
    """The documents of the numbers `chosen` [n], which ascend; all where it is None."""
    shards, dtype = manifest["shards"], manifest["dtype"]
    documents = np.cumsum([0, *(shard["documents"] for shard in shards)])
    tokens = np.cumsum([0, *(shard["tokens"] for shard in shards)])
    offsets = mapped(folder / manifest["offsets"]["file"], "<i8")
    if chosen is None:
        file, first, last = np.arange(len(shards)), tokens[:-1], tokens[1:]
    else:
        owner = np.searchsorted(documents, chosen, side="right") - 1
        parted = (np.diff(chosen) > 1) | (np.diff(owner) > 0)  # no stretch is in two shards
        begins = np.append(True, parted)[: chosen.size]
        ends = np.append(parted, True)[: chosen.size]
        file, first, last = owner[begins], offsets[chosen[begins]], offsets[chosen[ends] + 1]
        offsets = np.append(0, np.cumsum(offsets[chosen + 1] - offsets[chosen]))
    ids = [mapped(shard_folder(folder, n) / FILES[0], dtype) for n in range(len(shards))]
    stream: Any = Stretches(ids, file, first - tokens[file], last - first)
    return Tokens(stream, offsets, str(folder), name)
