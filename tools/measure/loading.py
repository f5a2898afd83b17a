"""Memory of the host while a Hugging Face folder is loaded, in a process that does nothing else."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import families
from jaxlm.core import tree
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.families import names
from jaxlm.hub.load import load_params, open_folder
from jaxlm.hub.shards import Lazy, write_tensors
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import param_shapes
from measure.pipe import Answer

STATUS = Path("/proc/self/status")
"""Of Linux alone."""


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


def _child(folder: str) -> Answer:
    command = [sys.executable, "-m", "measure.loading", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main(folder: str) -> None:
    """Load the folder and print the seconds, and the bytes beyond what the process had before."""
    layout = Layout(make_mesh({}, jax.devices()[:1]))
    jax.block_until_ready(jnp.zeros(8) + 1)  # what jax itself takes is there before
    opened, before, seen = open_folder(folder), _anonymous(), [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(_anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    params = load_params(opened, layout)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    peak = max(*seen, _anonymous())
    print(json.dumps({"seconds": seconds, "anonymous": peak - before}))


def _anonymous() -> int:
    """RssAnon: memory of this process that no file backs, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1])
