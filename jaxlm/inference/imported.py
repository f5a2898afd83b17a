"""A Hugging Face folder as a checkpoint of ours: sharded when read, and verified.

OUT/huggingface/config.json (as it came), tokenizer/ and checkpoints/0/. Every tensor is kept bit
for bit, and with the configuration beside them they leave as what they were.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxlm.checkpoint import inspect
from jaxlm.checkpoint.commit import Checkpoints
from jaxlm.checkpoint.restore import Store
from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.core.tree import Params
from jaxlm.hub import load as folders
from jaxlm.hub.fetch import local, pinned
from jaxlm.hub.load import Folder
from jaxlm.hub.pooling import FILES as POOLED
from jaxlm.hub.save import check_dtype, whole
from jaxlm.models.transformer import param_shapes
from jaxlm.text import tokenizer as tokenizers
from jaxlm.text.files import GENERATION

KEPT = "huggingface"
"""The folder in an import that holds config.json."""


def import_folder(
    source: str, out: str, *, dtype: str | None, warn: Callable[[str], None]
) -> Folder:
    """Write the Hugging Face folder `source` as an import into the new folder `out`.

    dtype: of the weights; their own by default. Raises ConfigError when `out` exists or the type is
    none of weights, CheckpointError and DataError for a folder that cannot be loaded, StorageError
    when the disk is full: nothing then has the name `out`.
    """
    check_dtype(dtype)
    Checkpoints(Path(out) / "checkpoints")  # raises for a name that it cannot have
    folder = folders.open_folder(source)
    tokenizer = tokenizers.load(folder.path)
    folders.check_tokenizer(folder, tokenizer)
    for note in folder.notes:
        warn(note)
    with whole(out) as temporary:
        _copy(folder.path, temporary)
        tokenizer.save(temporary / "tokenizer")
        checkpoints = Checkpoints(temporary / "checkpoints", warn=warn)
        params = folders.load_params(folder, Layout(make_mesh({}, jax.devices()[:1])), dtype)
        meta = {"position": 0, "source": pinned(source)}
        if not checkpoints.save(0, params, {}, meta, copy=False):
            raise CheckpointError(str(folder.path), "holds NaN or infinity; repair the weights")
        checkpoints.wait()
    return folder


def is_imported(path: str | Path) -> bool:
    """Whether `path` is what `import_folder` writes; a run may keep the same configuration."""
    return kept(path).is_file() and not (Path(path) / "config.yaml").is_file()


def kept(path: str | Path) -> Path:
    """Where an import, and a run that began with such a model, has the config.json it came with."""
    return Path(path) / KEPT / "config.json"


def keep(init: str, run: str | Path) -> None:
    """Let a run have the config.json of what it starts from, if there is one: it leaves with it."""
    source = local(init) if folders.is_folder(init) else kept(init).parent
    if (source / "config.json").is_file():
        _copy(source, Path(run))


def _copy(source: Path, out: Path) -> None:
    """What a model came with besides weights and tokenizer."""
    (out / KEPT).mkdir(parents=True, exist_ok=True)
    for name in ("config.json", GENERATION, *POOLED):
        if (source / name).is_file():
            (out / KEPT / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, out / KEPT / name)


def open_imported(path: str | Path) -> Folder:
    """The configuration of an import. Raises CheckpointError."""
    return folders.open_folder(Path(path) / KEPT)


def shapes(path: str | Path, folder: Folder, layout: Layout) -> Params:
    """The parameters of an import as ShapeDtypeStructs with shardings, in the types it has."""
    stored = inspect.manifest(f"{path}/checkpoints", 0).items["params"]

    def one(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        kind = jnp.dtype(stored[name].dtype) if name in stored else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=leaf.sharding)

    return tree.map_named(one, param_shapes(folder.spec, layout, jnp.float32))


def load_imported(
    path: str | Path,
    folder: Folder,
    layout: Layout,
    warn: Callable[[str], None],
    store: Store | None = None,
) -> Params:
    """Every parameter of an import, verified, on the mesh of `layout`. Raises CheckpointError.

    store: what each becomes, one after the other.
    """
    checkpoints = Checkpoints(f"{path}/checkpoints", warn=warn)
    return checkpoints.restore(shapes(path, folder, layout), None, 0, store)[1]
