"""A model written as a Hugging Face folder: whole under its name, or not at all."""

import errno
import glob
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxlm import families
from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError, ConfigError, StorageError
from jaxlm.core.tree import Params
from jaxlm.families import names
from jaxlm.families.family import Family
from jaxlm.families.heads import Labels, named, write_labels
from jaxlm.families.names import Piece
from jaxlm.hub.pooling import write_pooling
from jaxlm.hub.shards import Lazy, write_tensors
from jaxlm.hub.tensors import set_cast
from jaxlm.models.spec import ModelSpec
from jaxlm.text.tokenizer import Tokenizer

DTYPES = ("float32", "bfloat16", "float16")
"""Types that weights may be written in."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when there is no room."""
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def save(
    out: str | Path,
    params: Params,
    spec: ModelSpec,
    tokenizer: Tokenizer,
    *,
    dtype: str | None = None,
    max_shard_bytes: int,
    config: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    labels: Labels | None = None,
    pool: str | None = None,
    card: str = "",
) -> Family:
    """Write config.json, generation_config.json, weights, tokenizer and README.md into `out`.

    dtype: of the weights; their own by default. config: the config.json that the model came with,
    whose family and other keys stay. generation: the generation_config.json that it came with,
    whose keys but ids stay. labels: a classifier's; None leaves those of `config`. pool: how it
    embeds texts, if it does. card: the text of README.md. Raises ConfigError when `out` exists or
    the type is none of DTYPES, CheckpointError when no family has this architecture or a number is
    beyond the type, StorageError when the disk is full.
    """
    check_dtype(dtype)
    family = families.find(config) if config else families.fitting(spec)
    tensors = lazy(params, spec, family, dtype)
    kind = dtype or _widest(tensors)
    with whole(out) as folder:
        made = _config(config, family, spec, tokenizer, kind)
        if labels and labels != named(config or {}, spec):
            made |= write_labels(labels)
        _write(folder / "config.json", made)
        _write(folder / "generation_config.json", _generation(generation, tokenizer, spec))
        tokenizer.save(folder)
        if pool:
            write_pooling(folder, pool, spec.embed)
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_tensors(folder, tensors, max_shard_bytes=max_shard_bytes)
    return family


def lazy(
    params: Params, spec: ModelSpec, family: Family, dtype: DTypeLike | None = None
) -> dict[str, Lazy]:
    """Each tensor of the family, made from the parameters when its turn comes."""
    leaves = tree.flatten(params)
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    pieces = names.expand(family.table(spec), shapes, spec.vocab)
    if lost := names.unfilled(pieces, shapes):
        raise CheckpointError("export", f"{lost[0]} has no place in {family.model_type}")
    return {name: _tensor(parts, leaves, dtype) for name, parts in names.tensors(pieces).items()}


def _tensor(pieces: list[Piece], leaves: dict[str, jax.Array], dtype: DTypeLike | None) -> Lazy:
    kind = np.dtype(jnp.dtype(dtype or leaves[pieces[0].leaf].dtype))

    def make() -> np.ndarray:
        slices = [np.asarray(leaves[piece.leaf][piece.at]) for piece in pieces]
        made = names.write(pieces, slices)
        if made.dtype == kind:
            return made
        cast = np.empty(made.shape, kind)
        set_cast(cast, made, pieces[0].name)
        return cast

    return Lazy(names.their_shape(pieces[0]), kind, make)


def _widest(tensors: Mapping[str, Lazy]) -> str:
    """The type that most bytes have: what config.json names."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype.name] = sizes.get(tensor.dtype.name, 0) + tensor.nbytes
    return max(sizes, key=lambda name: sizes[name])


def _config(
    given: Mapping[str, Any] | None,
    family: Family,
    spec: ModelSpec,
    tokenizer: Tokenizer,
    kind: str,
) -> dict[str, Any]:
    """config.json: as it came, with what may have changed; or of the spec alone."""
    if given:
        made = {**given, "vocab_size": spec.vocab}
        made.pop("auto_map", None)
        whole = {**made, "architectures": [family.class_of(spec)]}
        if family.spec(made).head != spec.head:
            made = whole | write_labels(named({}, spec))
        elif given.get("architectures"):  # of a network saved without its head, say
            made = whole if family.spec(whole) == family.spec(made) else made
        if spec.head.pool == "last" and made.get("pad_token_id") is None:
            made |= {"pad_token_id": tokenizer.pad}  # transformers finds the last token by it
    else:
        made = family.config(spec)
        made |= {key: i for key, i in _ids(tokenizer).items() if made.get(key) is None}
    types = [key for key in ("torch_dtype", "dtype") if key in made]
    return made | dict.fromkeys(types or ["torch_dtype", "dtype"], kind)


def _generation(
    given: Mapping[str, Any] | None, tokenizer: Tokenizer, spec: ModelSpec
) -> dict[str, Any]:
    pair = spec.structure == "encoder-decoder"
    start = {"decoder_start_token_id": spec.encoder.start} if pair else {}
    return {**(given or {"_from_model_config": False}), **_ids(tokenizer), **start}


def _ids(tokenizer: Tokenizer) -> dict[str, Any]:
    eos = list(tokenizer.ends) if len(tokenizer.ends) > 1 else tokenizer.eos
    found = zip(IDS, (tokenizer.bos, eos, tokenizer.pad), strict=True)
    return {key: value for key, value in found if value is not None}


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_dtype(dtype: str | None) -> None:
    """Raise ConfigError for what is none of DTYPES; None is."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError("--dtype", f"{dtype!r} is no type of weights; use {', '.join(DTYPES)}")


def check_new(out: Path) -> None:
    """Raise ConfigError when `out` exists."""
    if out.exists():
        raise ConfigError(str(out), "exists; name a folder that does not")


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A folder beside `path` that gets its name when everything is in it, and goes if not.

    Raises ConfigError when `path` exists, StorageError when the disk is full or closed.
    """
    out = Path(path)
    check_new(out)
    start = f".{out.name}-{socket.gethostname()}-"
    temporary = out.with_name(f"{start}{os.getpid()}")
    try:
        for left in out.parent.glob(f"{glob.escape(start)}*"):  # by a process that was killed
            if not _alive(left.name.removeprefix(start)):
                shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(out)
    except OSError as error:
        if out.is_dir():
            what = "was made by another process in the meantime; name another folder"
            raise ConfigError(str(out), what) from error
        advice = "make room or name another disk" if error.errno in FULL else "name another folder"
        raise StorageError(str(out), f"{error.strerror}; {advice}") from error
    except StorageError as error:
        what = error.what.partition(";")[0]
        raise StorageError(str(out), f"{what}; make room or name another disk") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _alive(process: str) -> bool:
    if not process.isdigit():
        return True  # no name of ours
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return int(process) != os.getpid()
