"""jaxlm's side of a step case: the compiled training step on one device."""

import re
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.optimizers import AdamW
from jaxlm.core import tree
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.core.tree import Params
from jaxlm.models import lora, quantize
from jaxlm.models.axes import AXES
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import init_params, make_forward
from jaxlm.objectives.lm import language_model
from jaxlm.observe import memory
from jaxlm.training import optim
from jaxlm.training.facts import facts
from jaxlm.training.step import TrainState, compile_step, train_step
from measure.pipe import Answer, serve
from measure.tokens import batch as make_batch

OPTIMIZER = AdamW()
"""The defaults of a run: AdamW, clipping at a norm of 1."""


class Step:
    """The state, the batch and the compiled step of a case."""

    def __init__(self, shape: dict[str, Any]):
        """shape: as `measure.cases` gives it."""
        spec = ModelSpec(**shape["model"])
        self.spec = spec.filled(vocab=spec.vocab or 0, max_length=shape["length"])
        self.layout = Layout(make_mesh({"fsdp": 1}, jax.devices()[:1]))
        rank, key = shape["lora_rank"], jax.random.key(0)
        params = initial(shape, self.spec, self.layout)
        mask = tree.select(params, (lora.TRAINED if rank else ".",))
        live, frozen = tree.partition(params, mask)
        length: int = shape["length"]
        self.facts = facts(live, frozen, self.spec, {"tokens": length, "targets": length})
        counted = {n: x for n, x in tree.flatten(params).items() if "lora_scale" not in n}
        self.parameters = quantize.total(counted)  # peft's scales are no parameters
        optimizer = optim.build(OPTIMIZER, live, steps=1000, axes=AXES)
        opt_state = optim.init_state(optimizer.tx, live, self.layout, AXES)
        whole = self.layout.sharding(())
        self.state = TrainState(jax.device_put(jnp.int32(0), whole), params, opt_state)
        self.batch = place(make_batch(shape), self.layout)
        self.key = jax.device_put(key, whole)
        step = partial(
            train_step,
            forward=make_forward(self.spec, self.layout, jnp.dtype(shape["dtype"])),
            objective=language_model(z_loss=0.0, shards=1),
            tx=optimizer.tx,
            trainable=mask,
            microbatches=1,
        )
        start = time.perf_counter()
        self.compiled = compile_step(step, self.state, self.batch, self.key)
        self.compile_seconds = time.perf_counter() - start

    def run(self, steps: int) -> float:
        """Do so many steps, wait for the last, and return its loss per token."""
        metrics: dict[str, Any] = {}
        for _ in range(steps):
            self.state, metrics = self.compiled(self.state, self.batch, self.key)
        jax.block_until_ready(self.state)
        return float(metrics["loss"] / metrics["weight"])


def initial(shape: dict[str, Any], spec: ModelSpec, layout: Layout) -> Params:
    """Random parameters, kernels in nf4 or int8 where that is `param_dtype`, and the adapters."""
    key, kind, rank = jax.random.key(0), shape["param_dtype"], shape["lora_rank"]
    quantized = kind in quantize.KINDS
    params = init_params(spec, layout, key, jnp.dtype("bfloat16" if quantized else kind))
    made: dict[str, jax.Array] = {}
    for name, leaf in tree.flatten(params).items():
        if quantized and re.search(quantize.KERNELS, name):
            parts = quantize.over_slices(name, partial(quantize.quantize, kind=kind), leaf)
            made |= {name.removesuffix("kernel") + part: x for part, x in parts.items()}
        else:
            made[name] = leaf
    params = tree.unflatten(made)
    if rank:
        how = {"rank": rank, "alpha": 2.0 * rank, "targets": [shape["lora_targets"]]}
        params = lora.add(params, layout, key, **how)
    return params


def place(arrays: dict[str, np.ndarray], layout: Layout) -> dict[str, jax.Array]:
    """A batch on the mesh, rows over its devices."""
    sharding = layout.sharding(("batch", None))
    return {name: jax.device_put(array, sharding) for name, array in arrays.items()}


class Server:
    """Answers the orders of `measure.turns`."""

    def __init__(self) -> None:
        self._step: Step | None = None

    def build(self, order: Answer) -> Answer:
        """Compile, and run the first step."""
        self._step = step = Step(order["shape"])
        analysis = step.compiled.memory_analysis()
        return {
            "parameters": step.parameters,
            "first_loss": step.run(1),
            "compile_seconds": step.compile_seconds,
            "temporary_bytes": analysis.temp_size_in_bytes if analysis else None,
            "argument_bytes": analysis.argument_size_in_bytes if analysis else None,
            "flops_per_token": step.facts["flops_per_token"],
            "flops_formula": step.facts["flops_formula"],
            "peak_flops": step.facts["peak_flops"],
            "device": jax.devices()[0].device_kind,
        }

    def run(self, order: Answer) -> Answer:
        """Do some steps and time them."""
        assert self._step is not None
        wall, used = time.perf_counter(), time.process_time()
        loss = self._step.run(order["steps"])
        return {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - used,
            "loss": loss,
            "peak_bytes": memory.peak_bytes(),
        }


if __name__ == "__main__":
    server = Server()
    serve({"build": server.build, "run": server.run})
