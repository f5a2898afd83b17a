"""Every preset loads; those for the CPU train a step, the others compile for 8 devices."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import processes
import pytest
import recipes

from jaxlm.config.load import load, presets
from jaxlm.core import errors, tree
from jaxlm.core.mesh import Layout, logical_axes, make_mesh
from jaxlm.inference.run import shapes, trained
from jaxlm.models.axes import AXES
from jaxlm.models.transformer import make_forward
from jaxlm.objectives.lm import language_model
from jaxlm.training import optim
from jaxlm.training.step import TrainState, train_step

DEVICE = {
    name: next(line.split()[-1] for line in path.read_text().splitlines() if "# device:" in line)
    for name, path in presets().items()
    if name not in recipes.METHODS  # test_recipes.py
}


ALONE = [name for name, device in DEVICE.items() if device == "cpu" and not load(name).init]
"""Those for the CPU that start from nothing."""


@pytest.mark.parametrize("name", ALONE)
def test_a_preset_for_the_cpu_trains_a_step(name, tmp_path):
    words = ["steps=1", "evaluate.batches=1", "batch=2", f"run_dir={tmp_path}/run"]
    if name != "quickstart":  # less to read than the standard library
        texts = (f"fox {n} and a dog {n % 7}".split() for n in range(2000))
        rows = ({"text": " ".join(t), "words": t, "labels": [w[:1] for w in t]} for t in texts)
        (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words += [f"data.train={tmp_path}/some.jsonl", "tokenizer.vocab=400"]
    code, _, err = processes.run("train", name, *words, f"data.cache={tmp_path}/cache")
    assert code == errors.DONE, err
    assert len(processes.losses(tmp_path)) == 1


@pytest.mark.once
def test_the_quickstart_has_a_second_half(tmp_path):
    words = ["steps=1", "evaluate.batches=1", "batch=2", f"data.cache={tmp_path}/cache"]
    tiny = ["model.layers=1", "model.embed=32", "tokenizer.vocab=300"]
    code, _, err = processes.run("train", "quickstart", *words, *tiny, f"run_dir={tmp_path}/base")
    assert code == errors.DONE, err
    words += [f"init={tmp_path}/base", f"run_dir={tmp_path}/run", "epochs=null", "samples.count=2"]
    code, out, err = processes.run(
        "train", "quickstart_lora", *words, "examples.overlong=drop", "samples.tokens=2"
    )
    assert code == errors.DONE, err
    said = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert len(said) == 4 and "general loss" in out + err


HERE = [name for name, device in DEVICE.items() if device != "cpu" and "llama3_" not in name]
"""Those of Llama 3 are planned in tests/plan, and compiled for TPUs by tools/plan_tables.py."""


@pytest.mark.parametrize("name", HERE)
def test_a_preset_for_an_accelerator_compiles_for_eight_devices(name):
    config = load(name)
    spec = config.model.filled(vocab=config.model.vocab, max_length=config.length)
    layout = Layout(make_mesh({"fsdp": -1}))
    forward = make_forward(spec, layout, jnp.bfloat16)
    params = shapes(config, spec, layout)
    mask = trained(config, params)
    assert config.steps
    optimizer = optim.build(config.optimizer, params, steps=config.steps, axes=AXES)
    opt_state = optim.state_shapes(optimizer.tx, params, layout, AXES)
    whole = layout.sharding(())
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=whole), params, opt_state)
    row = jax.ShapeDtypeStruct(
        (64, config.length), jnp.int32, sharding=layout.sharding(("batch", None))
    )
    batch = dict.fromkeys(("tokens", "targets", "segments", "positions"), row)
    batch["weights"] = jax.ShapeDtypeStruct(row.shape, jnp.float32, sharding=row.sharding)
    step = partial(
        train_step,
        forward=forward,
        objective=language_model(z_loss=config.objective.z_loss, shards=8),
        tx=optimizer.tx,
        trainable=mask,
        microbatches=2,
    )
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, jax.random.key(0)).compile()
    memory = compiled.memory_analysis()
    # Parameters and both moments in float32, an eighth of them on each device.
    share = 12 * sum(leaf.size for leaf in jax.tree.leaves(params)) / 8
    assert memory.argument_size_in_bytes < 1.05 * share + 64 * config.length * 20


@pytest.mark.parametrize("name", DEVICE)
def test_every_parameter_of_a_preset_has_its_axes(name):
    config = load(name)
    spec = config.model.filled(vocab=config.model.vocab or 1000, max_length=config.length)
    for leaf, shape in tree.flatten(shapes(config, spec, Layout(make_mesh({"fsdp": -1})))).items():
        axes = logical_axes(leaf, AXES)
        assert axes is not None and len(axes) == shape.ndim, leaf
