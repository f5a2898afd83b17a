"""Documents tokenized once, into memory-mapped arrays that are named by their content.

A cache is a folder `KEY/` with `train.ids`, `train.offsets`, `held.ids`, `held.offsets` and
`manifest.json`. KEY is a hash of everything that the tokens depend on. It is written under another
name and renamed, so that it is whole or absent, by one process while others wait for it.
"""

import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import shutil
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.core.errors import DataError, StorageError
from jaxlm.data import sources
from jaxlm.data.encoding import Writer, batches, encoded, sync
from jaxlm.data.files import reading, suffix
from jaxlm.data.sources import Source
from jaxlm.text.tokenizer import Tokenizer

FORMAT = 1
"""Part of the key: raise it when what is written changes."""
LARGE = 2**26
"""Bytes from which a local file's digest is remembered by its name, size and time of change."""
VERSION = ("ETag", "etag", "generation", "md5Hash", "LastModified", "mtime", "updated")
"""What the file systems of buckets tell of a file's content; each has names of its own."""
SPLITS = ("train", "held")
OLD = 5 * 86400.0
"""Seconds after which what another host left half written is taken for dead."""
BOOT = Path("/proc/sys/kernel/random/boot_id")
ELSEWHERE = "name another folder as data.cache"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Tokens:
    """A stream of documents, each [bos] ids eos.

    ids: [T] of uint16 or uint32, read by places and slices; offsets: int64 [documents + 1], where
    each starts, then T. where names it in errors, and digest is the hash of everything that the
    stream depends on.
    """

    ids: np.ndarray
    offsets: np.ndarray
    where: str
    digest: str


@dataclass(frozen=True)
class Cached:
    """One source: what is trained on, what is held out, and what was counted on the way."""

    train: Tokens
    held: Tokens
    counts: dict[str, int]


def default_folder() -> Path:
    """The user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm" / "tokens"


def held_out(text: str, share: float) -> bool:
    """Whether a document is held out: by its hash alone, so that its copies are held out too."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < limit(share)


def limit(share: float) -> int:
    """Documents are held out whose sha256 begins with 8 bytes below this, which fits them too."""
    return min(math.ceil(share * 2**64), 2**64 - 1)


def tokenized(
    source: Source,
    tokenizer: Tokenizer,
    *,
    parse_special: bool = False,
    hold_out: float = 0.0,
    folder: str | Path | None = None,
    say: Say | None = None,
) -> Cached:
    """The tokens of a source, from the cache in `folder` (the user's, when None) or made now.

    hold_out: share of the documents that go to `held`. `say` is told of long work. Raises DataError
    for what cannot be read and StorageError where the cache cannot be written.
    """
    root = default_folder() if folder is None else Path(folder).expanduser()
    with writing(root, ELSEWHERE):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    what = [FORMAT, source.field, tokenizer.digest, parse_special, hold_out]
    key = _key(source, what, root)
    if (cached := _open(root / key)) is not None:
        return cached
    clear(root)
    with (
        writing(root, ELSEWHERE),
        temporary(root) as folder,
        alone(root / f"{key}.lock", source.path, say),
    ):
        if (cached := _open(root / key)) is not None:  # another process has just written it
            return cached
        _write(folder, source, tokenizer, parse_special, hold_out, say)
        if _key(source, what, root) != key:
            raise DataError(source.path, "its files changed while they were read; run again")
        publish(root, folder, root / key, lambda: _open(root / key) is not None)
    if (cached := _open(root / key)) is None:
        raise StorageError(str(root / key), "is damaged as soon as it is written; check the disk")
    return cached


@contextmanager
def writing(where: str | Path, advice: str) -> Iterator[None]:
    """What the disk says, as a StorageError of one line."""
    try:
        yield
    except OSError as error:
        raise StorageError(str(where), f"cannot be written: {error.strerror}; {advice}") from error


def digest(file: Any, root: Path) -> str:
    """sha256 of a file's bytes. That of a large or remote one is remembered in `root`."""
    with reading(file):
        known = version(file)
        if known is None or (isinstance(file, Path) and known[0] < LARGE):
            return sha256(file)
        about = json.dumps([str(file), *known]).encode()
        memory = root / f"digest-{hashlib.sha256(about).hexdigest()[:32]}"
        if memory.is_file():
            return memory.read_text()
        found = sha256(file)
    with suppress(OSError):  # a cache that may only be read is one too
        fresh = root / f"digest-{uuid.uuid4().hex}"
        fresh.write_text(found)
        fresh.rename(memory)
    return found


def sha256(file: Any) -> str:
    """Of a file's bytes."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**22):
            found.update(block)
    return found.hexdigest()


def version(file: Any) -> list[Any] | None:
    """Size, and what changes whenever a file does; None where it must be read for that."""
    if isinstance(file, Path):
        status = file.stat()
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    if (remote := _remote(str(file))) is None:
        return None
    told = remote.info(str(file))
    known = [str(told[name]) for name in VERSION if told.get(name)]
    return [told["size"], *known] if known else None


def _remote(path: str) -> Any:
    """fsspec's file system of a path in a bucket; None for a local one."""
    if "://" not in path:
        return None
    from etils.epath import backend  # its paths tell a time that S3 does not have, and no ETag

    try:
        return backend.fsspec_backend.fs(path)
    except ImportError:  # epath reads gs:// through tensorflow where that is installed
        return None


@functools.cache
def _host() -> str:
    """A name of this host since it was started: of all whose locks are sure to be seen here."""
    boot = BOOT.read_text().strip() if BOOT.is_file() else ""
    return hashlib.sha256(f"{socket.gethostname()} {boot}".encode()).hexdigest()[:12]


@contextmanager
def temporary(root: Path, mode: int = 0o700) -> Iterator[Path]:
    """A new folder in `root` that others leave alone while this process lives, and that then goes.

    mode: less the umask, of a folder that gets another name when it is whole. Where files cannot be
    locked, nothing is cleared either.
    """
    folder = root / f"tmp-{_host()}-{uuid.uuid4().hex}"
    with (root / "lock").open("w") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            folder.mkdir(mode=mode)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def alone(lock: Path, where: str, say: Say | None) -> Iterator[None]:
    """One writer of a cache at a time on this disk; the kernel frees the lock of a dead one.

    The file stays, for `clear`: without it, who comes later would not wait for who waits now.
    """
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if say is not None:
                say(f"another process tokenizes {where}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # no locks on this disk: whoever writes the same one agrees
        yield


def clear(root: Path) -> None:
    """Remove what killed processes left half written, when no other process writes.

    A disk that hosts share may keep the locks of each to itself: what another host writes goes when
    nothing in it has changed for days.
    """
    with suppress(OSError), (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in root.glob("tmp-*"):
            if left.name.startswith(f"tmp-{_host()}-") or _idle(left) > OLD:
                shutil.rmtree(left, ignore_errors=True)
        for left in root.glob("*.lock"):
            left.unlink(missing_ok=True)


def _idle(folder: Path) -> float:
    """Seconds since anything in a folder was changed."""
    return time.time() - max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def _key(source: Source, what: list[Any], root: Path) -> str:
    with reading(source.path):
        if (remote := _remote(source.path)) is not None:
            remote.invalidate_cache()  # a listing from before would hide what changed since
    files = [[suffix(file), digest(file, root)] for file in sources.find(source.path)]
    return hashlib.sha256(json.dumps([*what, files]).encode()).hexdigest()[:32]


def _open(folder: Path) -> Cached | None:
    """The cache in `folder`; None when there is none, or one whose files are not whole."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        tokens = [_mapped(folder, split, manifest) for split in SPLITS]
    except (OSError, ValueError, KeyError, DataError):
        return None
    return Cached(*tokens, counts=manifest["counts"])


def _mapped(folder: Path, split: str, manifest: dict[str, Any]) -> Tokens:
    about = manifest[split]
    arrays = []
    for name, dtype, size in (
        ("ids", about["dtype"], about["tokens"]),
        ("offsets", "<i8", about["documents"] + 1),
    ):
        file = folder / f"{split}.{name}"
        if file.stat().st_size != size * np.dtype(dtype).itemsize:
            raise ValueError(f"{file} is not whole")
        arrays.append(mapped(file, dtype))
    return Tokens(*arrays, where=str(folder / f"{split}.ids"), digest=f"{folder.name}-{split}")


def mapped(path: Path, dtype: str) -> np.ndarray:
    """A file as an array that is read where it is looked at. Raises DataError."""
    with reading(path):
        empty = np.zeros(0, dtype)  # a file of no bytes cannot be mapped
        return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else empty


def _write(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    parse_special: bool,
    hold_out: float,
    say: Say | None,
) -> None:
    """Tokenize a source into the files of a cache."""
    counts: Counter[str] = Counter()
    writers = {split: Writer(folder, split, tokenizer) for split in SPLITS}
    texts = _told(sources.read(source, counts), source.path, say)
    for batch in batches(texts):
        for text, ids in zip(batch, encoded(batch, tokenizer, parse_special), strict=True):
            held = hold_out > 0 and held_out(text, hold_out)
            writers["held" if held else "train"].add(ids)
    manifest: dict[str, Any] = {name: writer.close() for name, writer in writers.items()}
    manifest |= {"format": FORMAT, "counts": dict(counts), "source": source.path}
    with (folder / "manifest.json").open("w") as stream:
        json.dump(manifest, stream, indent=2)
        sync(stream)


def publish(root: Path, new: Path, final: Path, whole: Callable[[], bool]) -> None:
    """Give what is finished in `root` its name, in the place of what is damaged or older.

    whole: whether what has that name is as good: another process was quicker, and its work stays.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with temporary(root) as old:
        while True:
            try:
                new.rename(final)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if whole():
                return
            with suppress(FileNotFoundError):  # where another has moved it away
                final.rename(old / uuid.uuid4().hex)
    parent = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _told(texts: Iterable[str], name: str, say: Say | None) -> Iterator[str]:
    """Pass documents on, with a line to `say` every few seconds."""
    next_line, characters = time.monotonic() + 2.0, 0
    for number, text in enumerate(texts, 1):
        characters += len(text)
        yield text
        if say and time.monotonic() > next_line:
            say(f"tokenizing {name}: {number:,} documents, {characters / 1e6:,.0f}M characters")
            next_line = time.monotonic() + 10.0
