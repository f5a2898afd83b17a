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
    """Milliseconds from the host's memory into a slot, the fastest of a round.

    The adapter is read from its folder, replaces another, which has been used, and then its leaves
    alone are put on the device, `steps` times in a round. Programs are those that were compiled
    from the first swap that is measured to the logits after the last.
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
        before, taken = compiled.count(COMPILED), {"read": [], "swap": [], "transfer": []}
        for turn in range(rounds * steps):
            started = [time.perf_counter()]
            adapter = model.read_adapter(paths[1 - turn % 2])
            started.append(time.perf_counter())
            model = model.with_adapter(adapter, name="one")
            jax.block_until_ready(model.params)
            started.append(time.perf_counter())
            jax.block_until_ready(jax.device_put(adapter.leaves, layout.sharding(())))
            started.append(time.perf_counter())
            for each, seconds in zip(taken.values(), np.diff(started), strict=True):
                each.append(1e3 * float(seconds))
        jax.block_until_ready(model.logits(tokens))
    turns = range(0, rounds * steps, steps)
    fastest = {name: [min(each[i : i + steps]) for i in turns] for name, each in taken.items()}
    read, swap, transfer = map(statistics.median, fastest.values())
    return {
        "milliseconds_read": read,
        "milliseconds_swap": swap,
        "milliseconds_transfer": transfer,
        "milliseconds_beyond_transfer": swap - transfer,
        "programs_compiled": compiled.count(COMPILED) - before,
        "megabytes_adapter": sum(leaf.nbytes for leaf in adapter.leaves.values()) / 1e6,
        "megabytes_base": tree.nbytes(base) / 1e6,
        "per_round": {f"milliseconds_{name}": each for name, each in fastest.items()}
        | {f"median_milliseconds_{name}": [statistics.median(x)] for name, x in taken.items()},
    }
