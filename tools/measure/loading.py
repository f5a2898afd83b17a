"""Memory of the host while a Hugging Face folder is loaded, in a process that does nothing else."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import families
from jaxlm.config.schema import RunConfig
from jaxlm.core import tree
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.families import names
from jaxlm.hub.load import load_params, open_folder
from jaxlm.hub.shards import Lazy, write_tensors
from jaxlm.inference.run import base_params
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import param_shapes
from jaxlm.training.state import inherit
from measure.pipe import Answer

STATUS = Path("/proc/self/status")
"""Of Linux alone."""


def quantized_loading(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Peak anonymous memory over the bytes of the base as a run with `frozen_dtype` holds it."""
    with tempfile.TemporaryDirectory() as folder:
        nbytes = write(Path(folder), shape["model"], "bfloat16", 1)
        each = [_child(folder, shape["frozen_dtype"]) for _ in range(rounds)]
    ratios = [one["anonymous"] / one["held"] for one in each]
    return {
        "ratio": max(ratios),
        "ratio_to_the_file": max(one["anonymous"] for one in each) / nbytes,
        "seconds": float(np.median([one["seconds"] for one in each])),
        "megabytes": each[0]["held"] / 1e6,
        "per_round": {"ratio": ratios},
    }


def loading(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Peak anonymous memory over the parameters' bytes, by dtype and number of files."""
    found: Answer = {"per_round": {}}
    for kind, model in shape["models"].items():
        for files in shape["files"]:
            with tempfile.TemporaryDirectory() as folder:
                nbytes = write(Path(folder), model, kind, files)
                each = [_child(folder) for _ in range(rounds)]
            name = f"{kind}_{files}_files" if files > 1 else f"{kind}_1_file"
            ratios = [one["anonymous"] / nbytes for one in each]
            found[f"ratio_{name}"] = max(ratios)
            found[f"seconds_{name}"] = float(np.median([one["seconds"] for one in each]))
            found[f"megabytes_{name}"] = nbytes / 1e6
            found["per_round"][f"ratio_{name}"] = ratios
    return found


def write(folder: Path, model: dict[str, Any], kind: str, files: int) -> int:
    """A folder of a network of noise in so many files; the bytes of its parameters as loaded."""
    spec = ModelSpec(**model).filled(vocab=1, max_length=1024)
    family, dtype = families.fitting(spec), np.dtype(jnp.dtype(kind))
    want = param_shapes(spec, Layout(make_mesh({}, jax.devices()[:1])), dtype)
    shapes = {name: leaf.shape for name, leaf in tree.flatten(want).items()}
    noise = np.random.default_rng(0).normal(size=1 << 20).astype(dtype)
    pieces = names.tensors(names.expand(family.table(spec), shapes, spec.vocab))
    tensors = {}
    for name, parts in pieces.items():
        size = names.their_shape(parts[0])
        tensors[name] = Lazy(size, dtype, lambda size=size: np.resize(noise, size))
    whole = sum(tensor.nbytes for tensor in tensors.values())
    write_tensors(folder, tensors, max_shard_bytes=whole if files == 1 else whole // (files - 1))
    (folder / "config.json").write_text(json.dumps(family.config(spec)))
    return tree.nbytes(want)


def _child(*words: str) -> Answer:
    command = [sys.executable, "-m", "measure.loading", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main(folder: str, frozen_dtype: str | None = None) -> None:
    """Load the folder, as it is or as a run's frozen base, and print the seconds, the bytes of the
    parameters, and those beyond what the process had before.
    """
    layout = Layout(make_mesh({}, jax.devices()[:1]))
    jax.block_until_ready(jnp.zeros(8) + 1)  # what jax itself takes is there before
    load = partial(load_params, open_folder(folder), layout)
    if frozen_dtype:
        keys = {"steps": 1, "data": {"train": "none"}, "init": folder, "trainable": ["norms"]}
        config = RunConfig.model_validate({**keys, "frozen_dtype": frozen_dtype})
        load = lambda: base_params(inherit(config), layout, None, print)[0]  # noqa: E731
    before, seen = _anonymous(), [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(_anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    params = load()
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    peak = max(*seen, _anonymous())
    held = tree.nbytes(params)
    print(json.dumps({"seconds": seconds, "anonymous": peak - before, "held": held}))


def _anonymous() -> int:
    """RssAnon: memory of this process that no file backs, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
