"""The tensors of a safetensors folder: every header checked first, then mapped one by one.

A file is the length of its header (8 bytes, little-endian), the header in JSON, and the bytes of
the tensors without a gap (https://huggingface.co/docs/safetensors). Strangers wrote it, so nothing
in it is believed: a header that lies about a place or a shape is refused, and never allocated for.
"""

import json
import math
import mmap
import os
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxlm.core.errors import CheckpointError
from jaxlm.core.words import printable

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in (
        ("BOOL", np.bool_),
        ("U8", np.uint8),
        ("I8", np.int8),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E8M0", ml_dtypes.float8_e8m0fnu),
        ("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
        ("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
        ("I16", np.int16),
        ("U16", np.uint16),
        ("F16", np.float16),
        ("BF16", ml_dtypes.bfloat16),
        ("I32", np.int32),
        ("U32", np.uint32),
        ("F32", np.float32),
        ("C64", np.complex64),
        ("F64", np.float64),
        ("I64", np.int64),
        ("U64", np.uint64),
    )
}
"""By their names in a header, in the library's order: it lays a file out from the last to the
first, so that every tensor is aligned."""

HEADER = 1 << 25
"""Bytes of a header or an index at most: enough for 250,000 tensors in one file."""
RANK = 32
"""Dimensions of a tensor at most."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SUFFIX = ".safetensors"
_FIELDS = {"dtype", "shape", "data_offsets"}
_AGAIN = "it is damaged or hostile; download it again from a source that you trust"
_CONVERT = (
    "convert it where you trust it, with python -c 'from transformers import AutoModelForCausalLM "
    'as M; M.from_pretrained("IN").save_pretrained("OUT")\' (or the class of its kind), '
    "and name OUT"
)


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies; start: bytes from the beginning of its file."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def set_cast(out: np.ndarray, values: np.ndarray, name: str) -> None:
    """out[...] = values. Raises CheckpointError for numbers that float16 would make infinite."""
    with np.errstate(over="ignore"):
        out[...] = values
    if out.dtype == np.float16 != values.dtype and np.isinf(out).any():
        raise CheckpointError(name, "holds numbers beyond float16's 65504; use bfloat16")


class Tensors(Mapping[str, np.ndarray]):
    """Arrays by name, each a read-only view of its file: the disk is read where one looks.

    `table` has the place, shape and dtype of each, `metadata` the free text of a single file. A
    file stays mapped while a view of it lives.
    """

    def __init__(self, table: dict[str, Stored], metadata: dict[str, str] | None = None):
        self.table, self.metadata = table, metadata or {}
        self._maps: weakref.WeakValueDictionary[Path, mmap.mmap] = weakref.WeakValueDictionary()

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self.table[name]
        if not stored.nbytes:
            return np.frombuffer(b"", stored.dtype).reshape(stored.shape)
        whole = self._map(stored.file)
        if len(whole) < stored.start + stored.nbytes:
            raise CheckpointError(str(stored.file), "was cut since it was opened; run again")
        count = math.prod(stored.shape)
        return np.frombuffer(whole, stored.dtype, count, stored.start).reshape(stored.shape)

    def _map(self, file: Path) -> mmap.mmap:
        """One map for all views of a file: each map keeps a descriptor, and few are allowed."""
        found = self._maps.get(file)
        if found is None:
            with _reading(file), file.open("rb") as stream:
                found = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[file] = found
        return found


def open_tensors(folder: str | Path, stem: str = "model") -> Tensors:
    """The tensors of `folder`: of STEM.safetensors, or of the shards that its index names.

    Only headers are read. Raises CheckpointError, with file and tensor, for what is missing,
    malformed or contradicts itself, and for weights in a pickle, which is never opened.
    """
    folder = Path(folder)
    single = folder / f"{stem}{_SUFFIX}"
    index = folder / f"{stem}{_SUFFIX}.index.json"
    if index.is_file():
        shards = _shards(index)
        if single.is_file() and single.name not in shards:
            wrong = f"holds both {single.name} and {index.name}, which names other files"
            raise CheckpointError(str(folder), f"{wrong}; remove the one that is out of date")
        return Tensors(_joined(index, shards))
    if single.is_file():
        return Tensors(*_header(single))
    raise _nothing(folder, single.name)


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of one file by name. Raises CheckpointError for everything that is not right."""
    return _header(file)[0]


def _header(file: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of one file, and its metadata."""
    with _reading(file):
        text, size = _text(file)
        if not text.startswith(b"{"):
            raise ValueError("its header does not begin with {")
        fields = _parse(text)
        metadata = fields.pop("__metadata__", {})
        _check_metadata(metadata)
        start = 8 + len(text)
        table = {name: _stored(name, row, file, start) for name, row in fields.items()}
        _check_covered(table, start, size)
        with safe_open(file, framework="np"):  # a second opinion: the library's own checks
            return table, metadata


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        wrong = f"cannot be read: {error.strerror or error}; check the file and its disk"
        raise CheckpointError(str(file), wrong) from error
    except (ValueError, RecursionError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(str(file), f"{printable(reason)}; {_AGAIN}") from error


def _text(file: Path) -> tuple[bytes, int]:
    """(the header's bytes, the size of the file)."""
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        first = stream.read(8)
        length = int.from_bytes(first, "little")
        if first == b"version ":
            wrong = "is a pointer of Git LFS and holds no weights; run git lfs pull in its folder"
            raise CheckpointError(str(file), wrong)
        if len(first) < 8:
            raise ValueError(f"is {'cut off' if first else 'empty'}: it has {size} bytes")
        if length > HEADER:
            raise ValueError(f"its header claims {length} bytes; at most {HEADER} are read")
        if length > size - 8:
            raise ValueError(f"its header claims {length} bytes, and {size - 8} follow")
        return stream.read(length), size


def _parse(text: bytes) -> dict[str, Any]:
    """A JSON object whose keys occur once, at every level. Raises ValueError."""
    try:
        found = json.loads(text.decode(), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ValueError(f"its JSON is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"its JSON does not parse: {error}") from None
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"its JSON is a {type(found).__name__} and not an object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {_shown(twice)} occurs twice")
    return found


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its __metadata__ is not an object of strings")


def _stored(name: str, row: Any, file: Path, data: int) -> Stored:
    """One tensor of a header, checked by itself; data: where the bytes of all begin."""
    tensor = f"tensor {_shown(name)}"
    if not _is_name(name):
        raise ValueError(f"{tensor} is named like a path or has unprintable characters")
    if not isinstance(row, dict) or set(row) != _FIELDS:
        raise ValueError(f"{tensor} needs dtype, shape and data_offsets, and nothing else")
    kind, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        shown = _shown(kind) if isinstance(kind, str) else "that is no name"
        wrong = f"{tensor} has a dtype {shown}; known are {', '.join(DTYPES)}"
        raise CheckpointError(str(file), f"{wrong}: store it as one of these")
    if not _are_counts(shape) or len(shape) > RANK:
        raise ValueError(f"{tensor} has a shape that is not a list of up to {RANK} counts")
    size = DTYPES[kind].itemsize
    if math.prod(max(dim, 1) for dim in shape) * size >= 2**63:  # numpy's bound, zeros or not
        raise ValueError(f"{tensor} has a shape beyond any memory")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{tensor} has data_offsets that are not a begin and an end")
    begin, end = offsets
    if math.prod(shape) * size != end - begin:
        raise ValueError(f"{tensor} is {kind} of shape {shape} and has {end - begin} bytes")
    return Stored(file, DTYPES[kind], tuple(shape), data + begin)


def _is_name(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return bool(parts[0]) and ".." not in parts and name.isprintable()


def _are_counts(values: Any) -> bool:
    """Whether it is a list of integers from 0; True and 1.0 are none."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_covered(table: dict[str, Stored], start: int, size: int) -> None:
    """Raise ValueError unless the tensors fill the bytes from start to size, each byte once."""
    position, before = start, "the header"
    for begin, nbytes, name in sorted((s.start, s.nbytes, name) for name, s in table.items()):
        tensor = f"tensor {_shown(name)}"
        if begin < position:
            raise ValueError(f"{tensor} overlaps {before} by {position - begin} bytes")
        if begin > position:
            raise ValueError(f"{begin - position} bytes before {tensor} belong to no tensor")
        position, before = begin + nbytes, tensor
        if position > size:
            raise ValueError(f"is cut off in {tensor}, which ends at byte {position} of {size}")
    if position < size:
        raise ValueError(f"{size - position} bytes after {before} belong to no tensor")


def _shards(index: Path) -> dict[str, list[str]]:
    """The names of the tensors of each shard, by the shard's name, as the index has them."""
    with _reading(index):
        with index.open("rb") as stream:
            text = stream.read(HEADER + 1)
        if len(text) > HEADER:
            raise ValueError(f"has more than {HEADER} bytes")
        files = _parse(text).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise ValueError("has no weight_map of tensors to files")
        shards: dict[str, list[str]] = {}
        for name, shard in files.items():
            if not isinstance(shard, str) or not _is_shard(shard):
                what = f"puts tensor {_shown(name)} in {_shown(str(shard))}"
                raise ValueError(f"{what}, which is not a {_SUFFIX} file beside it")
            shards.setdefault(shard, []).append(name)
        return shards


def _is_shard(name: str) -> bool:
    return name.endswith(_SUFFIX) and name.isprintable() and not set(name) & set("/\\")


def _joined(index: Path, shards: dict[str, list[str]]) -> dict[str, Stored]:
    """The headers of all shards, which must hold what the index says, each tensor once."""
    table: dict[str, Stored] = {}
    for shard, names in sorted(shards.items()):
        file = index.parent / shard
        if not file.is_file():
            wrong = f"is missing, and {index.name} puts {len(names)} tensors in it"
            raise CheckpointError(str(file), f"{wrong}; download it")
        found = read_header(file)
        if lacking := sorted(set(names) - set(found)):
            wrong = f"lacks tensor {_shown(lacking[0])}, which {index.name} puts in it"
            raise CheckpointError(str(file), f"{wrong}; download both again")
        if more := sorted(set(found) - set(names)):
            other = next((one for one, held in shards.items() if more[0] in held), None)
            wrong = f"holds tensor {_shown(more[0])}, which {index.name} "
            wrong += f"puts in {other}" if other else "does not name"
            raise CheckpointError(str(file), f"{wrong}; download both again")
        table |= found
    return table


def _nothing(folder: Path, single: str) -> CheckpointError:
    """What to say where there are no weights to open."""
    if not folder.is_dir():
        return CheckpointError(str(folder), f"is no folder; name one that holds {single}")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickles = [name for name in names if name.endswith(PICKLES)]
    others = [name for name in names if name.endswith(_SUFFIX)]
    if others:
        wrong = f"holds {printable(others[0])}, and neither {single} nor {single}.index.json"
        return CheckpointError(str(folder), f"{wrong}; rename it or download the index")
    if pickles:
        wrong = f"holds {printable(pickles[0])}, a pickle, which can run code and is never opened"
        return CheckpointError(str(folder), f"{wrong}; {_CONVERT}")
    wrong = f"holds neither {single} nor {single}.index.json"
    return CheckpointError(str(folder), f"{wrong}; download the weights as safetensors")


def _shown(text: str) -> str:
    """A stranger's text in quotes, short, and harmless to a terminal."""
    return f"'{printable(text[:80])[:80]}{'...' if len(text) > 80 else ''}'"
