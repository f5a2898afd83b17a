"""`jaxlm data tokenize`: documents to a folder of tokens (corpus.py), by many processes or jobs.

A source is cut into parts: a file of records is one, files that are one document each come together
until they have LARGE bytes. Each part becomes one shard of the same number, written under another
name and renamed. What a shard depends on is in its key; one that is there with its key and digests
is not made again. So the same line goes on after a kill, and after a file has changed.

Where equal texts are left out, all texts are hashed first. Nothing depends on how many do it, or in
which order they come.
"""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core.errors import ConfigError, DataError, StorageError
from jaxlm.data import cache, corpus, repeats, sources
from jaxlm.data.corpus import FILES, FORMAT, HASH, SHARD, TOKENIZER, shard_folder
from jaxlm.data.encoding import Writer, batches, encoded, sync
from jaxlm.data.files import TOKENS, reading, suffix
from jaxlm.text import tokenizer as tokenizers
from jaxlm.text.tokenizer import Tokenizer

LARGE = 2**26
"""Bytes of files of one document each that make a part."""
ALONE = (".txt", ".py")
"""Formats of which a file is one document."""
HASHES, TEXTS, DIGESTS = FILES[2], "texts", "digests"


class Part(NamedTuple):
    """Files that become one shard."""

    number: int
    files: tuple[Any, ...]


@dataclass(frozen=True)
class Work:
    """What is asked for, and from where; a Source too."""

    path: str
    """The source, as in data.train."""
    out: str
    field: str = "text"
    parse_special: bool = False
    deduplicate: bool = False
    """Leave out every text that is equal to one before it."""
    min_tokens: int = 0
    """Of a document with its start and end tokens; shorter ones are left out."""
    max_tokens: int = 0
    """0 has no limit."""
    weight: None = None

    @property
    def folder(self) -> Path:
        """Where the tokens go."""
        return Path(self.out)

    @property
    def digests(self) -> Path:
        """Where digests of large files are remembered."""
        return self.folder / DIGESTS

    @property
    def options(self) -> dict[str, Any]:
        """What `tokens.json` says, besides the tokenizer."""
        given = asdict(self)
        return {name: given[name] for name in given if name not in ("out", "weight")}

    def tokenizer(self) -> Tokenizer:
        """The one in the folder."""
        return _loaded(str(self.folder / TOKENIZER))


@functools.cache
def _loaded(path: str) -> Tokenizer:
    return tokenizers.load(path)


def parts(work: Work) -> list[Part]:
    """The parts of the source, in order. Raises DataError as files.find."""
    found: list[list[Any]] = []
    size, open_ = 0, False
    for file in sources.find(work.path):
        alone = suffix(file) in ALONE
        if not (alone and open_):
            found.append([])
            size = 0
        found[-1].append(file)
        size += _size(file) if alone else 0
        open_ = alone and size < LARGE
    return [Part(number, tuple(files)) for number, files in enumerate(found)]


def claim(work: Work, tokenizer: Tokenizer) -> None:
    """Begin the folder, or go on in it. Raises ConfigError for one that holds something else."""
    folder, said = work.folder, {"format": FORMAT, **work.options, "tokenizer": tokenizer.digest}
    with writing(work):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / TOKENS).is_file():
            other = sorted({path.name for path in folder.iterdir()} - {TOKENIZER})
            if other := [name for name in other if "lock" not in name and name[:4] != "tmp-"]:
                what = f"holds {other[0]}, which this did not make; name another folder"
                raise ConfigError(str(folder), what)
        with cache.temporary(folder) as new, cache.alone(folder / "claim.lock", work.path, None):
            if not (there := corpus.opened_json(folder / TOKENS)):
                tokenizer.save(new / TOKENIZER)
                _replace(folder, new / TOKENIZER, folder / TOKENIZER)
                write_json(new / TOKENS, said)
                (new / TOKENS).replace(folder / TOKENS)
                there = said
            work.digests.mkdir(exist_ok=True)
        cache.clear(folder)
    for name in said:
        if there.get(name) != said[name]:
            old, new = (_shown(each) for each in (there.get(name), said[name]))
            what = f"was begun with {name}={old}, not {new}; give {old}, or name another folder"
            raise ConfigError(str(folder), what)
    if work.tokenizer().digest != tokenizer.digest:
        raise DataError(str(folder / TOKENIZER), f"is damaged; remove {folder} and begin again")


def hash_texts(work: Work, part: Part) -> None:
    """Hash the texts of a part, unless it is done."""
    with writing(work):
        key, folder = _text_key(work, part), texts_folder(work, part.number)
        if corpus.opened_json(folder / SHARD).get("key") == key:
            return
        with cache.temporary(work.folder) as new:
            with (new / HASHES).open("wb") as stream:
                for text in sources.read(work, Counter(), list(part.files)):
                    stream.write(_hash(text))
                sync(stream)
            _unchanged(part, _text_key(work, part), key)
            write_json(new / SHARD, {"key": key})
            _replace(work.folder, new, folder)


def find_repeats(work: Work, count: int) -> str:
    """Say of every document whether it is repeated, from the hashes of all `count` parts.

    Returns the name of the folder that says it, a file for each part.
    """
    with writing(work):
        folders = [texts_folder(work, number) for number in range(count)]
        key = _key(*(corpus.opened_json(folder / SHARD)["key"] for folder in folders))
        final = work.folder / f"repeats-{key[:32]}"
        lock = work.folder / "repeats.lock"
        with cache.temporary(work.folder) as new, cache.alone(lock, work.path, None):
            if not final.is_dir():
                hashes = [_hashes(folder) for folder in folders]
                ends = np.cumsum([each.shape[0] for each in hashes])
                (new / "repeats").mkdir()
                for number, own in enumerate(np.split(repeats.repeated(hashes), ends[:-1])):
                    with (new / "repeats" / f"{number:05d}").open("wb") as stream:
                        own.tofile(stream)
                        sync(stream)
                _replace(work.folder, new / "repeats", final)
    return final.name


def texts_folder(work: Work, number: int) -> Path:
    """Where the hashes of a part's texts are."""
    return work.folder / TEXTS / f"{number:05d}"


def without(folder: Path, count: int) -> list[int]:
    """The parts of which `folder` has nothing yet: TEXTS or SHARDS."""
    return [n for n in range(count) if not (folder / f"{n:05d}" / SHARD).is_file()]


def write_shard(work: Work, part: Part, repeated: str | None = None) -> dict[str, Any]:
    """Tokenize a part into its shard, unless it is done. Returns what its shard.json says.

    repeated: the file that says what is. Raises DataError with file and line for what cannot be
    read, StorageError where nothing can be written.
    """
    with writing(work):
        drop = repeats_of(work, repeated, part)
        key, folder = shard_key(work, part, drop), shard_folder(work.folder, part.number)
        there = corpus.opened_json(folder / SHARD)
        if there.get("key") == key and not corpus.damage(folder, there["digests"], work.digests):
            return there
        with cache.temporary(work.folder) as new:
            said = _tokenize(work, part, drop, new)
            _unchanged(part, shard_key(work, part, drop), key)
            read = [
                {
                    "file": str(file),
                    "bytes": _size(file),
                    "digest": cache.digest(file, work.digests),
                }
                for file in part.files
            ]
            said = {"format": FORMAT, "key": key, "files": read, **said}
            write_json(new / SHARD, said)
            _replace(work.folder, new, folder)
        return said


def _tokenize(work: Work, part: Part, drop: np.ndarray | None, folder: Path) -> dict[str, Any]:
    """Write the files of a shard; what became of the documents, and the digests of the files."""
    counts: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    tokenizer = work.tokenizer()
    writer = Writer(folder, "train", tokenizer)
    row = 0
    with (folder / HASHES).open("wb") as hashes:
        for batch in batches(sources.read(work, counts, list(part.files))):
            gone = np.zeros(len(batch), bool) if drop is None else drop[row : row + len(batch)]
            row += len(batch)
            counts["repeated"] += int(gone.sum())
            kept = [text for text, again in zip(batch, gone, strict=True) if not again]
            for text, ids in zip(kept, encoded(kept, tokenizer, work.parse_special), strict=True):
                if ids.size < work.min_tokens:
                    counts["short"] += 1
                elif work.max_tokens and ids.size > work.max_tokens:
                    counts["long"] += 1
                else:
                    writer.add(ids)
                    hashes.write(_hash(text))
                    lengths[1 << int(ids.size - 1).bit_length()] += 1
        sync(hashes)
    said = writer.close()
    return {
        **said,
        "counts": {"read": counts.pop("documents", 0), **{n: c for n, c in counts.items() if c}},
        "lengths": {str(most): lengths[most] for most in sorted(lengths)},
        "digests": {name: cache.sha256(folder / name) for name in FILES},
    }


def repeats_of(work: Work, repeated: str | None, part: Part) -> np.ndarray | None:
    """bool: which documents of a part are left out for being repeated; None where none is."""
    if repeated is None:
        return None
    return np.fromfile(work.folder / repeated / f"{part.number:05d}", bool)


def _hashes(folder: Path) -> np.ndarray:
    return corpus.mapped(folder / HASHES, "u1").reshape(-1, HASH)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:HASH]


def _key(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _text_key(work: Work, part: Part) -> str:
    return _key(FORMAT, work.field, _digests(work, part))


def shard_key(work: Work, part: Part, drop: np.ndarray | None) -> str:
    """Of everything that a shard depends on."""
    gone = None if drop is None else hashlib.sha256(drop.tobytes()).hexdigest()
    limits = work.min_tokens, work.max_tokens
    given = FORMAT, work.field, work.tokenizer().digest, work.parse_special, *limits, gone
    return _key(*given, _digests(work, part))


def _digests(work: Work, part: Part) -> list[list[str]]:
    return [[suffix(file), cache.digest(file, work.digests)] for file in part.files]


def _unchanged(part: Part, now: str, before: str) -> None:
    if now != before:
        where = str(part.files[0])
        raise DataError(where, "changed while it was read; run the same line again")


def _size(file: Any) -> int:
    with reading(file):
        status = file.stat()
        return status.st_size if isinstance(file, Path) else status.length


def write_json(path: Path, said: dict[str, Any]) -> None:
    """Write JSON, and have it on the disk."""
    with path.open("w") as stream:
        json.dump(said, stream, indent=1)
        sync(stream)


def _replace(root: Path, new: Path, final: Path) -> None:
    """Give a finished folder below `root` its name, in the place of an older one."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with cache.temporary(root) as old:
        if final.exists():
            final.rename(old / "old")
        new.rename(final)
    parent = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _shown(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value)


@contextmanager
def writing(work: Work) -> Iterator[None]:
    """What the disk says, as one line; what is done stays."""
    try:
        yield
    except OSError as error:
        wrong = f"cannot be written: {error.strerror}; mend it and run the same line again"
        raise StorageError(work.out, f"{wrong}: what is done stays") from error
