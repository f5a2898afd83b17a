"""Arrays to a folder and back. Orbax does the sharded reading and writing, and nothing else.

Of orbax only the tree handler is used, on a flat dict of names: its managers rename before our
manifest exists, and it casts dtypes, pads and truncates shapes without a word, so `check` comes
first. Arrays without elements, which it refuses, are in the manifest alone.
"""

import asyncio
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from jaxlm.checkpoint.manifest import Tensor
from jaxlm.core import distributed, tree
from jaxlm.core.errors import CheckpointError

Likes = Mapping[str, jax.ShapeDtypeStruct]


def by_name(values: Any) -> dict[str, Any]:
    """Leaves by name. Raises ValueError when two have one name."""
    leaves = tree.flatten(values)
    if len(leaves) != len(jax.tree.leaves(values)):
        raise ValueError("two leaves of the tree have one name")
    return leaves


def joined(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{"params": {"a": x}} as {"params/a": x}."""
    return {f"{item}/{name}": leaf for item, part in parts.items() for name, leaf in part.items()}


def some(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _handler() -> ocp.PyTreeCheckpointHandler:
    _hush()
    leaves = ocp.type_handlers.ArrayHandler(
        # Sharing a replicated array's bytes among its replicas compiles a program per slice: worth
        # it among hosts, which write at the same time, not among the devices of one.
        use_replica_parallel=distributed.count() > 1,
        enable_write_sharding_file=False,
    )
    return ocp.PyTreeCheckpointHandler(
        use_ocdbt=True,
        # Weights are noise: zstd saves a twelfth of the bytes for most of the write's time.
        use_compression=False,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, leaves)),
    )


def _hush() -> None:
    """Of several writes that fail orbax raises one, and all of them would print tracebacks."""
    absl.logging.set_verbosity("fatal")
    logging.getLogger("asyncio").addFilter(_is_news)
    report = sys.unraisablehook
    if getattr(report, "__name__", "") == "report_news":
        return

    def report_news(problem: Any) -> None:
        # Writes behind one that failed report to an event loop that orbax has closed.
        if str(problem.exc_value) != "Event loop is closed":
            report(problem)

    sys.unraisablehook = report_news


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return "never retrieved" not in text or ("async_serialize" not in text and "OCDBT" not in text)


def host_copy(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Arrays that a later donation cannot overwrite while they are being written.

    On the CPU "host memory" is the array itself, so it is copied; on accelerators `write` copies.
    """
    if jax.default_backend() != "cpu" or not leaves:
        return dict(leaves)
    return _copy(dict(leaves))


@jax.jit
def _copy(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.copy, leaves)


def write(folder: epath.Path, leaves: Mapping[str, jax.Array]) -> list[Any]:
    """Start to write this process's shards; returns once they are copied off the devices.

    Returns futures whose `result()` waits for the disk, and raises what went wrong there. When
    every process has waited for its own, one of them calls `finalize`.
    """
    full = {name: leaf for name, leaf in leaves.items() if leaf.size}
    if not full:
        return []
    return asyncio.run(_handler().async_save(folder, args=ocp.args.PyTreeSave(full))) or []


def wait(futures: Sequence[Any]) -> None:
    """Until all writes have ended. Raises the first thing that went wrong."""
    failures = []
    for future in futures:
        try:
            future.result()
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]


def finalize(folder: epath.Path) -> None:
    """Join what the processes wrote into one index. Process 0 alone, after all are done."""
    if any(folder.iterdir()):
        _handler().finalize(folder)


def read(folder: epath.Path, like: Likes) -> dict[str, jax.Array]:
    """Arrays of `folder` with the shapes, dtypes and shardings of `like`, which `check` passed.

    Raises what orbax raises when the files are damaged; what it returns must still be digested.
    """
    full = {name: leaf for name, leaf in like.items() if math.prod(leaf.shape)}
    found = {name: _empty(leaf) for name, leaf in like.items() if name not in full}
    if full:
        args = {
            name: ocp.ArrayRestoreArgs(
                sharding=_sharding(leaf), global_shape=leaf.shape, dtype=leaf.dtype
            )
            for name, leaf in full.items()
        }
        item = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in full.items()}
        wanted = ocp.args.PyTreeRestore(item, args, partial_restore=True)
        found |= _handler().restore(folder, args=wanted)
    return {name: found[name] for name in like}


def read_host(folder: epath.Path, name: str, tensor: Tensor) -> np.ndarray:
    """One whole array in host memory, without devices. Raises ValueError when it cannot be read."""
    if not math.prod(tensor.shape):
        return np.empty(tensor.shape, jnp.dtype(tensor.dtype))
    base = folder.as_posix() if "://" in folder.as_posix() else folder.absolute().as_uri()
    store = {"driver": "ocdbt", "base": f"{base}/", "path": f"{name}/"}
    opened = tensorstore.open({"driver": "zarr", "kvstore": store}, open=True, read=True)
    return np.asarray(opened.result().read().result())


def check(tensors: Mapping[str, Tensor], like: Likes, where: str) -> None:
    """Raise CheckpointError naming the tensors in which a checkpoint differs from what is asked."""
    problems = [f"{name} is not in it" for name in like if name not in tensors]
    problems += [f"{name} is in it and not in the model" for name in tensors if name not in like]
    for name in like.keys() & tensors.keys():
        ours, theirs = like[name], tensors[name]
        if tuple(ours.shape) != theirs.shape or ours.dtype.name != theirs.dtype:
            problems.append(
                f"{name} is {_show(theirs.dtype, theirs.shape)} in it "
                f"and {_show(ours.dtype.name, ours.shape)} in the model"
            )
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            where,
            f"does not fit this model: {'; '.join(sorted(problems)[:3])}{more}; "
            "use the configuration that wrote it, or another run_dir",
        )


def _show(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"


def _sharding(leaf: jax.ShapeDtypeStruct) -> Any:
    return leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _empty(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), _sharding(leaf))
