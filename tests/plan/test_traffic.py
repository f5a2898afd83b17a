"""What the planner counts on the network is what the compiled step sends."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxlm.config.load import load
from jaxlm.core.mesh import AXES, Layout, make_mesh
from jaxlm.plan.ahead import batch_shapes
from jaxlm.plan.collectives import collectives
from jaxlm.plan.devices import Machine, devices
from jaxlm.plan.sketch import model, resolved, sketch
from jaxlm.plan.steptime import communication
from jaxlm.training.building import build
from jaxlm.training.step import TrainState, compile_step

pytestmark = pytest.mark.once

TINY = [
    *("model.layers=2", "model.embed=64", "model.heads=4", "model.mlp=128", "tokenizer.vocab=320"),
    *("batch=16", "length=32", "compute_dtype=float32", "optimizer.type=adamw"),
]


def traffic(*words):
    """(bytes by the mesh's axis as planned, the collectives of the step) on four CPU devices."""
    config = resolved(load("quickstart", [*TINY, *words]))
    device = replace(devices()["cpu"], near=1.0, far=1.0)  # seconds are bytes
    found = sketch(model(config, "cpu"), Machine(device, (4,)))
    layout = Layout(
        make_mesh({axis: getattr(config.mesh, axis) for axis in AXES}, jax.devices()[:4])
    )
    built = build(config, config.model, layout, steps=10, tokenizer=None)
    whole = layout.sharding(())
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    state = TrainState(count, built.params, built.opt_state)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole)
    text = compile_step(built.step, state, batch_shapes(found, layout), key).as_text()
    return communication(found.load, found.machine), collectives(text)


@pytest.mark.parametrize("parts", [1, 4])
def test_copies_add_up_their_gradients_after_every_microbatch(parts):
    words = "mesh.data=4", "mesh.fsdp=1", "model.tied=false"  # a tied table has two gradients
    planned, found = traffic(*words, f"microbatches={parts}")
    assert found.keys() == {"all-reduce"}
    assert found["all-reduce"].bytes == pytest.approx(planned["data"], rel=0.05)


@pytest.mark.parametrize(("remat", "gathers"), [("none", 2), ("full", 3)])
def test_tokens_go_to_experts_and_sums_come_back(remat, gathers):
    words = ["mesh.expert=4", "mesh.fsdp=1", "model.experts.count=4", "model.experts.chosen=2"]
    planned, found = traffic(*words, f"model.remat={remat}")
    scattered = found["reduce-scatter"].bytes
    # Beside the tokens a layer scatters the gradient of their two weights.
    assert scattered == pytest.approx(2 / (2 + gathers) * planned["expert"], rel=0.05)
    assert found["all-gather"].bytes > planned["expert"] - scattered
