"""MANIFEST.json: what a checkpoint holds, and the sums that prove it. No jax here.

A folder without a readable manifest is no checkpoint. The manifest carries its own checksum, every
file's size and sha256, and a digest per tensor that does not depend on how it was sharded.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from etils import epath

from jaxlm.core.errors import CheckpointError

FORMAT = 1
NAME = "MANIFEST.json"
META = "meta/meta.json"


class DamagedError(CheckpointError):
    """A checkpoint that was written and does not read back as it was: an older one may do."""


@dataclass(frozen=True)
class Tensor:
    """One array of a checkpoint; digest as `digest.digests` gives it."""

    shape: tuple[int, ...]
    dtype: str
    digest: str


@dataclass(frozen=True)
class File:
    """One file of a checkpoint; sha256 None where it was too large to be read back."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class Manifest:
    """One committed checkpoint. saved: UTC, ISO 8601; score: lower is better."""

    step: int
    saved: str
    score: float | None
    digest: str
    items: dict[str, dict[str, Tensor]]
    files: dict[str, File]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files.values())


def chain(items: Mapping[str, Mapping[str, Tensor]], position: Any = None) -> str:
    """sha256 over names, dtypes, shapes and digests of all tensors in name order, and position.

    items: {"params": {name: Tensor}, ...}; position: the data position, anything JSON can hold.
    """
    lines = [
        f"{item}/{name} {tensor.dtype} {list(tensor.shape)} {tensor.digest}"
        for item, tensors in items.items()
        for name, tensor in tensors.items()
    ]
    text = "\n".join([*sorted(lines), f"position {canonical(position)}"])
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON with one spelling per value. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def dump(manifest: Manifest) -> bytes:
    """The file's bytes."""
    body = {"format": FORMAT, **asdict(manifest)}
    body["checksum"] = _checksum(body)
    return json.dumps(body, indent=1).encode()


def load(folder: epath.PathLike) -> Manifest:
    """The manifest of the checkpoint in `folder`.

    Raises DamagedError when it is missing, unreadable or not what was written, CheckpointError when
    a newer jaxlm wrote it.
    """
    path = epath.Path(folder) / NAME
    try:
        body = json.loads(path.read_bytes())
        checksum = body.pop("checksum")
        if checksum != _checksum(body):
            raise ValueError("its checksum differs")
        if (number := body.pop("format")) == FORMAT:
            return _parse(body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DamagedError(str(path), f"is damaged or missing ({reason})") from error
    raise CheckpointError(str(path), f"has format {number}, this jaxlm reads {FORMAT}; update it")


def _parse(body: dict[str, Any]) -> Manifest:
    items = {
        item: {
            name: Tensor(tuple(row["shape"]), row["dtype"], row["digest"])
            for name, row in tensors.items()
        }
        for item, tensors in body["items"].items()
    }
    files = {name: File(row["size"], row["sha256"]) for name, row in body["files"].items()}
    if any(name.startswith("/") or ".." in name.split("/") for name in files):
        raise ValueError("a file lies outside the checkpoint")
    return Manifest(**{**body, "items": items, "files": files})


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(body).encode()).hexdigest()
