"""Tensors written as safetensors: made and streamed one by one, in shards of a chosen size.

Every file is written under another name and renamed when all of them are on the disk, the index
last, so that a folder holds whole weights or none.
"""

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.core import words
from jaxlm.core.errors import ConfigError, StorageError
from jaxlm.hub.tensors import DTYPES, read_header

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(DTYPES.values())}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("kmgt", 1)}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmgt]i?)?b?", re.IGNORECASE)


@dataclass(frozen=True)
class Lazy:
    """A tensor that is made when its turn comes; make: () -> an array of this shape and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def shard_bytes(text: str, where: str = "--max-shard-size") -> int:
    """Bytes of 5GB (10^9), 5GiB (2^30), 500 MB or 1000000. Raises ConfigError, under `where`."""
    found = _SIZE.fullmatch(text.strip())
    size = round(float(found[1]) * _UNITS[(found[2] or "").lower()]) if found else 0
    if size < 1:
        shown = words.printable(text[:40])
        raise ConfigError(where, f"{shown!r} is no size; write one like 5GB, 500MB or 2GiB")
    return size


def write_tensors(
    folder: str | Path,
    tensors: Mapping[str, Lazy],
    *,
    max_shard_bytes: int,
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
) -> list[Path]:
    """Write STEM.safetensors, or its shards and their index, into `folder`; the paths written.

    Tensors keep their order over the shards, and one that is larger than a shard has its own. One
    at a time is in memory. metadata: for each header, beside the format that transformers asks for.
    Raises StorageError for a disk that is full or closed, after removing what was begun, and
    ConfigError where the folder already holds such weights.
    """
    folder = Path(folder)
    shards = _plan(tensors, max_shard_bytes)
    count = len(shards)
    names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    files = dict(zip(names if count > 1 else [f"{stem}.safetensors"], shards, strict=True))
    names = [*files, f"{stem}.safetensors.index.json"] if count > 1 else [*files]
    with _storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, stem, sum(tensor.nbytes for tensor in tensors.values()))
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
        try:
            for name, shard in files.items():
                held = {one: tensors[one] for one in shard}
                _write(temporary / name, held, {"format": "pt", **(metadata or {})})
                read_header(temporary / name)  # what strangers' files must pass, ours must
            if count > 1:
                _write_index(temporary / names[-1], tensors, files)
            for name in names:
                (temporary / name).rename(folder / name)
            _sync(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return [folder / name for name in names]


def _plan(tensors: Mapping[str, Lazy], max_shard_bytes: int) -> list[list[str]]:
    """The names in each shard: as many as fit, in the order given."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


@contextmanager
def _storing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        wrong = f"cannot be written: {error.strerror or error}; free some space or name another"
        raise StorageError(str(folder), wrong) from error


def _check_room(folder: Path, stem: str, nbytes: int) -> None:
    pattern = re.compile(rf"{re.escape(stem)}(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
    if found := sorted(path.name for path in folder.iterdir() if pattern.fullmatch(path.name)):
        raise ConfigError(str(folder), f"already holds {found[0]}; remove it or name another")
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        wrong = f"has {words.size(free)} free and needs {words.size(nbytes)}"
        raise StorageError(str(folder), f"{wrong}; free some or name another")


def _write(file: Path, tensors: Mapping[str, Lazy], metadata: Mapping[str, str]) -> None:
    """One file, laid out as the library does: by dtype, so that all are aligned, then by name."""
    order = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name in order:
        tensor, begin = tensors[name], position
        position += tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, position],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            stream.write(_made(name, tensors[name]))
        stream.flush()
        os.fsync(stream.fileno())


def _made(name: str, tensor: Lazy) -> memoryview:
    """The tensor's bytes, row by row."""
    array = tensor.make()
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        is_, meant = (f"{x.dtype}{list(x.shape)}" for x in (array, tensor))
        raise ValueError(f"{name} was made as {is_} and announced as {meant}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write_index(file: Path, tensors: Mapping[str, Lazy], shards: Mapping[str, list[str]]) -> None:
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: shard for shard, names in shards.items() for name in names},
    }
    with file.open("w") as stream:
        stream.write(json.dumps(index, indent=2, sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
