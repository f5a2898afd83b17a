"""One checkpoint back onto devices, verified: structure, files, then every tensor's digest."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from etils import epath

from jaxlm.checkpoint import arrays, digest, files, inspect, manifest
from jaxlm.checkpoint.manifest import META, DamagedError, Manifest
from jaxlm.core import distributed, tree

Store = Callable[[str, jax.Array], dict[str, jax.Array]]
"""What a tensor becomes as soon as it is read and verified: leaves by name."""

_NAMED = 4 << 30  # bytes up to which all is read again, on one host, to name the damaged tensor


def read(
    path: epath.Path, likes: dict[str, Any], store: Store | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the trees by item, meta) of the checkpoint in `path`; all processes together.

    likes: {"params": tree of jax.ShapeDtypeStruct with shardings, ...}. store: each tensor is given
    to it and let go, so that they are never all there. Raises DamagedError naming the tensor or
    file that does not read back as it was saved, CheckpointError when names, shapes or dtypes are
    others.
    """
    recorded, meta = distributed.together("checkpoint.examine", lambda: _examine(path))
    flat = {item: arrays.by_name(like) for item, like in likes.items()}
    expected = arrays.joined({item: recorded.items.get(item, {}) for item in flat})
    arrays.check(expected, arrays.joined(flat), str(path))
    if store:
        return {i: _stored(path, recorded, i, like, store) for i, like in flat.items()}, meta
    found = distributed.together(
        "checkpoint.read",
        lambda: {item: _load(path, recorded, item, like) for item, like in flat.items()},
    )
    _check(path, recorded, expected, arrays.joined(found))
    structures = {item: jax.tree.structure(like) for item, like in likes.items()}
    return {item: structures[item].unflatten(found[item].values()) for item in found}, meta


def _stored(path: epath.Path, recorded: Manifest, item: str, like: Any, store: Store) -> Any:
    """The tree of what `store` makes of each tensor of an item."""
    made: dict[str, jax.Array] = {}
    for name, one in like.items():
        reading = partial(_load, path, recorded, item, {name: one})
        found = distributed.together("checkpoint.read", reading)
        _check(path, recorded, {name: recorded.items[item][name]}, found)
        made |= store(name, found.pop(name))
    return tree.unflatten(made)


def _check(path: epath.Path, recorded: Manifest, expected: Any, found: Any) -> None:
    """Raise DamagedError where a tensor that was read has another digest than was recorded."""
    sums, _ = digest.digests(found)
    if bad := [name for name in expected if sums[name] != expected[name]]:
        damage = distributed.agree("checkpoint.damage", lambda: _damaged_files(path, recorded))
        what = f"tensor {arrays.some(bad)} does not read back as saved"
        raise DamagedError(str(path), "; ".join([*damage[:1], what]))


def _examine(path: epath.Path) -> tuple[Manifest, dict[str, Any]]:
    recorded = manifest.load(path)
    if distributed.index() == 0 and files.problems(path, recorded, full=False):
        raise DamagedError(str(path), _blame(path, recorded))
    return recorded, json.loads((path / META).read_bytes())


def _load(path: epath.Path, recorded: Manifest, item: str, like: Any) -> dict[str, jax.Array]:
    try:
        return arrays.read(path / item, like)
    except Exception as error:  # of many kinds, long, without the tensor's name
        if blame := _blame(path, recorded):
            raise DamagedError(str(path), blame) from error
        raise


def _blame(path: epath.Path, recorded: Manifest) -> str:
    """One damaged file and one damaged tensor; empty when all is well."""
    if recorded.nbytes > _NAMED:
        return "; ".join(files.problems(path, recorded, full=False)[:2])
    found = inspect.problems(path, recorded)
    tensors = [line for line in found if line.startswith("tensor")]
    others = [line for line in found if not line.startswith("tensor")]
    return "; ".join(others[:1] + tensors[:1])


def _damaged_files(path: epath.Path, recorded: Manifest) -> list[str]:
    return files.problems(path, recorded, full=recorded.nbytes <= _NAMED)
