"""Out of memory is told from other errors, explained, and met with overrides that can be run."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.config.load import load
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.core.tree import flatten
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import init_params, make_forward
from jaxlm.objectives.lm import language_model
from jaxlm.plan.memory import Step, Use, estimate, is_out_of_memory, memory_table, overrides
from jaxlm.training.step import TrainState, train_step

SHAPE = {"layers": 4, "embed": 128, "heads": 4, "kv_heads": 2}
SPEC = ModelSpec(**SHAPE).filled(vocab=1024, max_length=256)
STEP = Step(SPEC, 8, 256, 1, data=1, fsdp=1, compute_dtype=jnp.float32, chunk_bytes=2**26)
USE = Use(parameters=40, gradients=40, optimizer=80, activations=600, loss=40)
CHOICES = {
    "optimizer": "adamw",
    "state_dtype": "float32",
    "param_dtype": "float32",
    "frozen_dtype": "auto",
    "lora_rank": 0,
    "pretrained": True,
}


def shapes(spec):
    layout = Layout(make_mesh({}, jax.devices()[:1]))
    params = jax.eval_shape(
        lambda key: init_params(spec, layout, key, jnp.float32), jax.random.key(0)
    )
    tx = optax.adamw(1e-3)
    return layout, params, tx, jax.eval_shape(tx.init, params)


def compiled_step(step):
    layout, params, tx, opt_state = shapes(step.spec)
    whole = jax.ShapeDtypeStruct((step.batch, step.length), jnp.int32)
    names = ["tokens", "targets", "segments", "positions"]
    source = jax.ShapeDtypeStruct((step.batch, step.source or step.length), jnp.int32)
    read = ["source", "source_segments", "source_positions"]
    read = read if step.spec.structure == "encoder-decoder" else []
    weights = jax.ShapeDtypeStruct(whole.shape, jnp.float32)
    batch = dict.fromkeys(names, whole) | dict.fromkeys(read, source) | {"weights": weights}
    one = partial(
        train_step,
        forward=make_forward(step.spec, layout, jnp.float32),
        objective=language_model(z_loss=0.0, shards=1),
        tx=tx,
        trainable=frozenset(flatten(params)),
        microbatches=step.microbatches,
    )
    count = jax.eval_shape(lambda: jnp.zeros((), jnp.int32))
    state = TrainState(count, params, opt_state)  # pyright: ignore[reportArgumentType]
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = jax.jit(one, donate_argnums=0).lower(state, batch, key).compile()
    return compiled, params, opt_state


def test_what_xla_raises_is_out_of_memory():
    with pytest.raises(jax.errors.JaxRuntimeError) as found:
        jnp.zeros(2**58)
    assert is_out_of_memory(found.value)
    with pytest.raises(MemoryError) as host:
        np.ones(2**58)
    assert is_out_of_memory(host.value)
    try:
        raise RuntimeError("step 1") from found.value
    except RuntimeError as wrapped:
        assert is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G of 16G hbm.", True),
        ("RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 2.0G", True),
        ("INTERNAL: std::bad_alloc", True),
        ("RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 147968", False),
        ("RESOURCE_EXHAUSTED: Received message larger than max (5 vs. 4)", False),
        ("INVALID_ARGUMENT: shapes differ", False),
    ],
)
def test_the_status_alone_does_not_decide(text, expected):
    assert is_out_of_memory(jax.errors.JaxRuntimeError(text)) == expected


def test_an_ordinary_error_that_speaks_of_memory_is_not_meant():
    assert not is_out_of_memory(ValueError("out of memory"))


def test_logits_are_counted_where_they_are_made():
    _, params, _, opt_state = shapes(SPEC)
    every = frozenset(flatten(params))
    loss = [estimate(replace(STEP, scored=n), params, opt_state, every).loss for n in (None, 32, 0)]
    head, states = SPEC.vocab * SPEC.embed * 4, STEP.batch * STEP.length * SPEC.embed * 4
    assert loss == [
        3 * STEP.batch * 256 * SPEC.vocab * 4 + states + head,
        3 * STEP.batch * 32 * SPEC.vocab * 4 + states + head,
        states,
    ]
    few = SPEC.model_copy(update={"head": SPEC.head.model_copy(update={"labels": 2})})
    labels = estimate(replace(STEP, spec=few, scored=32), params, opt_state, every).loss
    assert labels == 3 * STEP.batch * 32 * 2 * 4 + states
    assert STEP.shorter(2).length == 128 and replace(STEP, scored=32).shorter(4).scored == 8


@pytest.mark.parametrize(
    ("structure", "source"),
    [("decoder", None), ("encoder", None), ("encoder-decoder", None), ("encoder-decoder", 192)],
)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_estimate_is_near_what_xla_allocates(remat, structure, source):
    spec = ModelSpec(**SHAPE, remat=remat, structure=structure).filled(vocab=1024, max_length=256)
    step = replace(STEP, spec=spec, batch=32, length=64, source=source, microbatches=2)
    compiled, params, opt_state = compiled_step(step)
    use = estimate(step, params, opt_state, frozenset(flatten(params)))
    analysis = compiled.memory_analysis()
    assert analysis is not None
    temporary = analysis.temp_size_in_bytes
    assert 1 / 1.6 < (use.gradients + use.activations + use.loss) / temporary < 1.6
    assert "the compiler counts" in memory_table(use, [], limit=None, compiled=compiled)


def test_frozen_parameters_have_no_gradient_and_shards_count_once():
    mesh = make_mesh({"fsdp": 8})
    split = jax.NamedSharding(mesh, jax.P("fsdp"))
    params = {
        "base": jax.ShapeDtypeStruct((64, 4), jnp.float32, sharding=split),
        "lora_a": jax.ShapeDtypeStruct((4,), jnp.float32),
    }
    use = estimate(STEP, params, {"mu": params["lora_a"]}, frozenset({"lora_a"}))
    assert (use.parameters, use.gradients, use.optimizer) == (64 * 4 * 4 // 8 + 16, 16, 16)


@pytest.mark.parametrize(("tied", "head"), [(True, "embed/embedding"), (False, "head/kernel")])
def test_a_frozen_head_has_no_gradient_in_the_loss(tied, head):
    step = replace(STEP, spec=SPEC.model_copy(update={"tied": tied}))
    trained, frozen = (estimate(step, {}, {}, frozenset({n})).loss for n in (head, "mlp/kernel"))
    assert trained - frozen == 1024 * 128 * 4


def test_of_experts_those_of_the_device_are_gathered_and_tables_are_split_over_them():
    kernels = {name: jnp.zeros((4, 8, 128, 64)) for name in ("gate", "up", "down")}
    params = {"decoder": {"blocks": {"experts": {n: {"kernel": k} for n, k in kernels.items()}}}}
    sizes = [
        estimate(replace(STEP, fsdp=fsdp, expert=expert), params, {}, frozenset()).collectives
        for fsdp, expert in ((8, 1), (2, 4))
    ]
    table, layer = 1024 * 128 * 4, 3 * 8 * 128 * 64 * 4
    assert sizes == [2 * layer + table, 2 * layer // 4 + table]
    use = replace(USE, parameters=10**7)
    said = [
        next(line for line in overrides(step, use, **{**CHOICES, "lora_rank": 8}) if "nf4" in line)
        for step in (replace(STEP, fsdp=n, expert=m) for n, m in ((8, 1), (2, 4), (2, 1)))
    ]
    assert said[0] == said[1] != said[2]


def test_the_table_names_the_largest_first_and_what_the_device_has():
    lines = memory_table(USE, ["microbatches=4"], limit=500).splitlines()
    assert lines[1].split() == ["activations", "600", "B", "75%"]
    assert lines[6].split() == ["together", "800", "B;", "the", "device", "has", "500", "B"]
    assert lines[-1].strip() == "microbatches=4"


def keys(use=USE, step=STEP, **choices):
    return [line.split("  ")[0] for line in overrides(step, use, **{**CHOICES, **choices})]


def test_activations_are_met_by_a_smaller_step_and_state_by_a_smaller_state():
    step = replace(STEP, batch=64)
    full = estimate(step, {"w": jnp.zeros(4)}, {"w": jnp.zeros(4)}, frozenset({"w"}))
    assert set(keys(full, step)) == {"microbatches=4", "model.remat=full", "length=128"}
    state = Use(parameters=10**9, gradients=10**9, optimizer=2 * 10**9, activations=1, loss=1)
    assert keys(state)[0] == "lora.rank=8"
    assert keys(state, pretrained=False)[0] == "optimizer.type=adafactor"


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "adafactor", "muon"])
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("scale", [1, 10**6])
def test_there_are_three_and_each_can_be_run(optimizer, remat, scale):
    spec = SPEC.model_copy(update={"remat": remat})
    step = replace(STEP, spec=spec, data=2, fsdp=2)
    use = Use(10 * scale, 10 * scale, 20 * scale, 10**6, 10**5)
    found = keys(use, step, optimizer=optimizer)
    assert len(set(found)) == 3
    given = ["data.train=stdlib", "steps=1", f"optimizer.type={optimizer}", "batch=8", "length=256"]
    for each in found:
        load(None, [*given, *each.split()])


def test_microbatches_leave_every_device_a_row():
    step = replace(STEP, batch=12, data=2, fsdp=2)
    use = Use(1, 1, 1, 10**9, 1)
    assert "microbatches=3" in keys(use, step)
    alone = replace(STEP, batch=4, data=2, fsdp=2)
    assert not [key for key in keys(use, alone) if key.startswith("microbatches")]
