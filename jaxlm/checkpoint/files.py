"""Files that survive a power cut: written, flushed to the disk, measured, hashed, removed."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress

from etils import epath

from jaxlm.checkpoint.manifest import META, NAME, File, Manifest

SMALL = 1 << 20  # bytes up to which a file's hash is checked at each restore
_CHUNK = 1 << 22


def is_local(path: epath.PathLike) -> bool:
    """Whether the path is on a mounted disk, where a rename is atomic and fsync exists."""
    return "://" not in os.fspath(path)


def write(path: epath.Path, data: bytes) -> None:
    """Write a file and flush it to the disk."""
    path.write_bytes(data)
    sync([path])


def sync(paths: Iterable[epath.Path]) -> None:
    """Flush files or folders to the disk; nothing on object stores, which commit each object."""
    for path in paths:
        if is_local(path):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def listing(folder: epath.Path) -> tuple[list[str], list[str]]:
    """(files, folders) below `folder`, relative, sorted."""
    files, folders = [], []
    for root, below, names in folder.walk():
        prefix = "" if root == folder else f"{root.relative_to(folder)}/"
        files += [prefix + name for name in names]
        folders += [prefix + name for name in below]
    return sorted(files), sorted(folders)


def measure(path: epath.Path) -> File:
    """Size and sha256. On object stores large files are not read back."""
    size = path.stat().length
    return File(size, sha256(path) if is_local(path) or size <= SMALL else None)


def sha256(path: epath.Path) -> str:
    """sha256 of a file's bytes, hex."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()


def problems(folder: epath.Path, manifest: Manifest, *, full: bool) -> list[str]:
    """What differs from the manifest, a line per file; full: hash the large files too."""
    found = []
    for name, file in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().length
            hashed = file.sha256 and (full or size <= SMALL or name == META)
            if size != file.size:
                found.append(f"file {name} has {size} bytes instead of {file.size}")
            elif hashed and sha256(path) != file.sha256:
                found.append(f"file {name} is damaged (its sha256 differs)")
        except OSError as error:
            found.append(f"file {name} cannot be read ({error.strerror or error})")
    return found


def remove(folder: epath.Path) -> None:
    """Remove a checkpoint or a temporary. Its manifest goes first: half of one is none."""
    (folder / NAME).unlink(missing_ok=True)
    folder.rmtree(missing_ok=True)


def discard(folder: epath.Path) -> None:
    """Remove what a failed save wrote. Its writes on their way may make the folder anew: wait."""
    for seconds in (0.05, 0.2, 0.5):
        with suppress(OSError):
            remove(folder)
        time.sleep(seconds)
    with suppress(OSError):
        remove(folder)


def free(folder: epath.Path) -> int | None:
    """Free bytes where `folder` lies; None on object stores."""
    return shutil.disk_usage(folder).free if is_local(folder) else None
