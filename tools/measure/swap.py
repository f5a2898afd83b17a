"""Swaps of adapters in the slots of a loaded model, against the transfer of their bytes alone."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import families
from jaxlm.core import tree
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.hub.adapter import read_adapter
from jaxlm.hub.adapter_save import save_adapter
from jaxlm.inference import adapters, slots
from jaxlm.inference.model import Model
from jaxlm.models import lora
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import init_params
from measure.pipe import Answer

COMPILED = "/jax/core/compile/backend_compile_duration"
"""What jax calls a compilation, of any program, to whoever listens."""


def adapter_swap(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Milliseconds from a folder on the disk to a model that has it, the fastest of a round.

    The adapter replaces another, which has been used. Its leaves alone are put on the device in
    turn with that, `steps` times in a round. Programs are those that were compiled from the first
    swap that is measured to the logits after the last.
    """
    compiled: list[str] = []

    def hear(event: str, duration_secs: float, **_: str | int) -> None:
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(hear)
    spec = ModelSpec(**shape["model"])
    spec = spec.filled(vocab=spec.vocab or 0, max_length=shape["length"])
    layout, family = Layout(make_mesh({}, jax.devices()[:1])), families.fitting(spec)
    base = init_params(spec, layout, jax.random.key(0), jnp.dtype(shape["dtype"]))
    rank, targets = shape["rank"], ["all-linear"]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("first", "second")]
        for seed, path in enumerate(paths):
            key = jax.random.key(seed)
            made = lora.add(base, layout, key, rank=rank, alpha=2.0 * rank, targets=targets)
            digest = adapters.base_digest(base, spec)
            save_adapter(path, made, spec, family, base=digest)
        params, held = slots.reserve(base, slots.Slots(rank, targets, shape["slots"]), layout)
        tokenizer: Any = None
        model = Model(params, spec, tokenizer, layout, jnp.float32, held=held)
        tokens = np.zeros((shape["batch"], shape["length"]), np.int32)
        model = model.with_adapter(paths[0], name="one")
        jax.block_until_ready(model.logits(tokens))
        before, swaps, transfers = compiled.count(COMPILED), [], []
        for turn in range(rounds * steps):
            path = paths[1 - turn % 2]
            start = time.perf_counter()
            model = model.with_adapter(path, name="one")
            jax.block_until_ready(model.params)
            swaps.append(time.perf_counter() - start)
            leaves, _ = read_adapter(path, base, spec, family)
            start = time.perf_counter()
            jax.block_until_ready(jax.device_put(leaves, layout.sharding(())))
            transfers.append(time.perf_counter() - start)
        jax.block_until_ready(model.logits(tokens))
    fastest = [
        [1e3 * min(each[i : i + steps]) for i in range(0, rounds * steps, steps)]
        for each in (swaps, transfers)
    ]
    swap, transfer = map(statistics.median, fastest)
    return {
        "milliseconds_swap": swap,
        "milliseconds_transfer": transfer,
        "milliseconds_beyond_transfer": swap - transfer,
        "programs_compiled": compiled.count(COMPILED) - before,
        "megabytes_adapter": sum(leaf.nbytes for leaf in leaves.values()) / 1e6,
        "megabytes_base": tree.nbytes(base) / 1e6,
        "per_round": {
            "milliseconds_swap": fastest[0],
            "milliseconds_transfer": fastest[1],
            "milliseconds_median_swap": [1e3 * statistics.median(swaps)],
        },
    }
