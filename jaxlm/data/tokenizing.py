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
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core.errors import ConfigError, DataError
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
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            what = "is a file, or would lie in one; name a folder"
            raise ConfigError(str(folder), what) from error
        names = {path.name for path in folder.iterdir() if path.suffix != ".lock"}
        other = sorted(name for name in names - {TOKENIZER, "lock"} if name[:4] != "tmp-")
        # Looked for after the names: whoever begins the folder meanwhile writes it before others.
        if other and not (folder / TOKENS).is_file():
            what = f"holds {other[0]}, which this did not make; name another folder"
            raise ConfigError(str(folder), what)
        with making(work) as new, cache.alone(folder / "claim.lock", work.path, None):
            there, final = corpus.opened_json(folder / TOKENS), folder / TOKENIZER
            if not there or (there.get("tokenizer") == tokenizer.digest and not final.exists()):
                tokenizer.save(new / TOKENIZER)
                cache.publish(folder, new / TOKENIZER, final, lambda: _is(final, tokenizer))
            if not there:
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


def _is(folder: Path, tokenizer: Tokenizer) -> bool:
    try:
        return tokenizers.load(str(folder)).digest == tokenizer.digest
    except DataError:  # damaged, or moved away meanwhile
        return False


def hash_texts(work: Work, part: Part) -> None:
    """Hash the texts of a part, unless it is done."""
    with writing(work):
        seen = _seen(work, part)
        key, folder = _text_key(work, part), texts_folder(work, part.number)
        if shard_json(folder).get("key") != key:
            with making(work) as new:
                with (new / HASHES).open("wb") as stream:
                    for text in sources.read(work, Counter(), list(part.files)):
                        stream.write(_hash(text))
                    sync(stream)
                _unchanged(part, _text_key(work, part), key)
                write_json(new / SHARD, {"key": key})
                cache.publish(work.folder, new, folder, lambda: not stale(work, part))
        with making(work) as new:
            (new / "seen").write_text(seen)
            (new / "seen").replace(_seen_file(work, part))


def stale(work: Work, part: Part) -> bool:
    """Whether the hashes of a part's texts are of other texts than its files hold now, or none."""
    there = shard_json(texts_folder(work, part.number))
    return there.get("key") != _text_key(work, part)


def unhashed(work: Work, found: list[Part]) -> list[int]:
    """The parts without hashes, or whose files look otherwise than when they were hashed.

    Reads no file: every job asks this of the parts of all.
    """
    missing = set(without(work.folder / TEXTS, len(found)))
    for part in found:
        file = _seen_file(work, part)
        if not file.is_file() or file.read_text() != _seen(work, part):
            missing.add(part.number)
    return sorted(missing)


def _seen_file(work: Work, part: Part) -> Path:
    return work.digests / f"texts-{part.number:05d}"


def _seen(work: Work, part: Part) -> str:
    """The names of a part's files, their sizes, and when each was changed."""
    files = []
    for file in part.files:
        with reading(file):
            files.append([str(file), cache.version(file) or cache.digest(file, work.digests)])
    return _key(files)


def find_repeats(work: Work, count: int) -> str:
    """Say of every document whether it is repeated, from the hashes of all `count` parts.

    Returns the name of the folder that says it, a file for each part.
    """
    with writing(work):
        folders = [texts_folder(work, number) for number in range(count)]
        key = _key(*(corpus.opened_json(folder / SHARD).get("key") for folder in folders))
        final = work.folder / f"repeats-{key[:32]}"
        lock = work.folder / "repeats.lock"
        with making(work) as new, cache.alone(lock, work.path, None):
            if not final.is_dir():
                hashes = [_hashes(folder) for folder in folders]
                ends = np.cumsum([each.shape[0] for each in hashes])
                (new / "repeats").mkdir()
                for number, own in enumerate(np.split(repeats.repeated(hashes), ends[:-1])):
                    with (new / "repeats" / f"{number:05d}").open("wb") as stream:
                        own.tofile(stream)
                        sync(stream)
                cache.publish(work.folder, new / "repeats", final, final.is_dir)
    return final.name


def texts_folder(work: Work, number: int) -> Path:
    """Where the hashes of a part's texts are."""
    return work.folder / TEXTS / f"{number:05d}"


def without(folder: Path, count: int) -> list[int]:
    """The parts of which `folder` has nothing yet: TEXTS or SHARDS."""
    with reading(folder):
        return [n for n in range(count) if not (folder / f"{n:05d}" / SHARD).is_file()]


def write_shard(work: Work, part: Part, repeated: str | None = None) -> dict[str, Any]:
    """Tokenize a part into its shard, unless it is done. Returns what its shard.json says.

    repeated: the file that says what is. Raises DataError with file and line for what cannot be
    read, StorageError where nothing can be written.
    """
    with writing(work):
        drop = repeats_of(work, repeated, part)
        key, folder = shard_key(work, part, drop), shard_folder(work.folder, part.number)
        if there := _whole(work, folder, key):
            return there
        if repeated is not None and stale(work, part):
            raise changed(part)
        with making(work) as new:
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
            cache.publish(work.folder, new, folder, lambda: bool(_whole(work, folder, key)))
        return said


def shard_json(folder: Path) -> dict[str, Any]:
    """What the shard.json in a folder says; empty where there is none, or a damaged one."""
    try:
        return corpus.opened_json(folder / SHARD)
    except DataError as error:
        if isinstance(error.__cause__, ValueError):  # no JSON
            return {}
        raise


def _whole(work: Work, folder: Path, key: str) -> dict[str, Any]:
    """What the shard.json of a shard that is as it should be says; else empty."""
    there = shard_json(folder)
    done = there.get("key") == key and "digests" in there
    done = done and not corpus.damage(folder, there["digests"], work.digests)
    return there if done else {}


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
            if gone.size < len(batch):
                raise changed(part)
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
    return cache.mapped(folder / HASHES, "u1").reshape(-1, HASH)


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
        raise changed(part)


def changed(part: Part) -> DataError:
    """That the files of a part are others than at first."""
    where = str(part.files[0])
    return DataError(where, "changed while it was read; run the same line again")


def _size(file: Any) -> int:
    with reading(file):
        status = file.stat()
        return status.st_size if isinstance(file, Path) else status.length


def write_json(path: Path, said: dict[str, Any]) -> None:
    """Write JSON, and have it on the disk."""
    with path.open("w") as stream:
        json.dump(said, stream, indent=1)
        sync(stream)


def making(work: Work) -> AbstractContextManager[Path]:
    """A new folder in that of the tokens, for whoever may read what is made there."""
    return cache.temporary(work.folder, 0o777)


def _shown(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value)


def writing(work: Work) -> AbstractContextManager[None]:
    """What the disk says, as one line; what is done stays."""
    return cache.writing(work.out, "mend it and run the same line again: what is done stays")
