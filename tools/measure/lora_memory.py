"""Memory of a LoRA step against full fine-tuning with AdamW in float32: 16 bytes a parameter.

A step holds the arguments of its compiled program (weights, adapters, moments, the batch) and the
gradients of what it trains.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import tree
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.core.tree import Params
from jaxlm.models import lora, quantize
from jaxlm.models.axes import AXES
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import make_forward
from jaxlm.objectives.lm import language_model
from jaxlm.training import optim
from jaxlm.training.step import TrainState, compile_step, train_step
from measure.jax_side import OPTIMIZER, initial, place
from measure.pipe import Answer
from measure.tokens import batch as make_batch

FULL = 16


def lora_memory(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Percent less than full fine-tuning, by how the frozen base is stored.

    Compiled for shape["model"], of which no weight is made; measured on shape["small"], by the
    arrays that are alive while it trains.
    """
    found: Answer = {}
    for kind in ("bfloat16", "int8", "nf4"):
        held, full = compiled(shape, kind)
        found[f"gigabytes_{kind}"] = held / 1e9
        found["gigabytes_full"] = full / 1e9
        found[f"percent_less_{kind}"] = 100 * (1 - held / full)
    for kind in ("bfloat16", "int8", "nf4"):
        held, full = measured({**shape, **shape["small"]}, kind, steps)
        found[f"percent_less_{kind}_small"] = 100 * (1 - held / full)
    return found


def compiled(shape: dict[str, Any], kind: str) -> tuple[int, int]:
    """(bytes that a step holds, those of full fine-tuning) of a model that is never made."""
    spec, layout = _spec(shape), Layout(make_mesh({}, jax.devices()[:1]))
    params = layout.placed(
        jax.eval_shape(partial(initial, {**shape, "param_dtype": kind}, spec, layout)), AXES
    )
    state, step, live = _step(shape, spec, layout, params)
    program = compile_step(step, state, place(make_batch(shape), layout), jax.random.key(0))
    analysis = program.memory_analysis()
    assert analysis is not None
    held = analysis.argument_size_in_bytes + tree.nbytes(live)
    return held, FULL * quantize.total(lora.without(params))


def measured(shape: dict[str, Any], kind: str, steps: int) -> tuple[int, int]:
    """The same of a model that trains: the arrays that are alive after some steps."""
    before = {id(array) for array in jax.live_arrays()}
    spec, layout = _spec(shape), Layout(make_mesh({}, jax.devices()[:1]))
    params = jax.jit(partial(initial, {**shape, "param_dtype": kind}, spec, layout))()
    full = FULL * quantize.total(lora.without(params))
    state, step, live = _step(shape, spec, layout, params)
    count = jax.device_put(jnp.int32(0), layout.sharding(()))
    state = TrainState(count, params, optim.init_state(_tx(live), live, layout, AXES))
    gradients = tree.nbytes(live)
    batch, key = place(make_batch(shape), layout), jax.random.key(0)
    del params, live
    program = compile_step(step, state, batch, key)
    for _ in range(steps):
        state, metrics = program(state, batch, key)
        assert np.isfinite(metrics["loss"])
    alive = [array for array in jax.live_arrays() if id(array) not in before]
    return sum(array.nbytes for array in alive) + gradients, full


def _spec(shape: dict[str, Any]) -> ModelSpec:
    spec = ModelSpec(**shape["model"])
    return spec.filled(vocab=spec.vocab or 0, max_length=shape["length"])


def _tx(live: Params) -> Any:
    return optim.build(OPTIMIZER, live, steps=1000, axes=AXES).tx


def _step(
    shape: dict[str, Any], spec: ModelSpec, layout: Layout, params: Params
) -> tuple[TrainState, Any, Params]:
    """(the state as shapes, the step, what it trains)."""
    mask = tree.select(params, (lora.TRAINED,))
    live, _ = tree.partition(params, mask)
    tx = _tx(live)
    step = partial(
        train_step,
        forward=make_forward(spec, layout, jnp.dtype(shape["dtype"])),
        objective=language_model(z_loss=0.0, shards=1),
        tx=tx,
        trainable=mask,
        microbatches=1,
    )
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=layout.sharding(()))
    state: Any = TrainState(count, params, optim.state_shapes(tx, live, layout, AXES))  # pyright: ignore[reportArgumentType]
    return state, step, live
