"""One step on meshes of 8 devices is the step of one device, and is really split over them."""

import os
import re
import tempfile
from contextlib import contextmanager
from functools import cache, partial

import jax
import networks
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxlm.config import optimizers
from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.models.axes import AXES
from jaxlm.models.transformer import make_forward
from jaxlm.objectives import xent
from jaxlm.training import optim
from jaxlm.training.step import TrainState, compile_step

LLAMA, GPT2 = networks.spec(), networks.spec(**networks.GPT2, tied=False)
MESHES = {
    "data8": ({"data": 8}, LLAMA),
    "fsdp8": ({"fsdp": 8}, LLAMA),
    "2x2x2": ({"data": 2, "fsdp": 2, "tensor": 2}, GPT2),
    "fsdp2 tensor4": ({"fsdp": 2, "tensor": 4}, GPT2),
    "fsdp2 tensor4, fewer kv heads": ({"fsdp": 2, "tensor": 4}, LLAMA),
}
LENGTH = 12
"""Tokens per row: the length of no dimension of a parameter."""
OPTIMIZERS = {
    "adamw": optimizers.AdamW(),
    "lion": optimizers.Lion(),
    "adafactor": optimizers.Adafactor(b1=0.9),
    "muon": optimizers.Muon(),
    "schedule_free_adamw": optimizers.ScheduleFreeAdamW(),
}


@contextmanager
def really_compiling():
    """What is compiled here is not read from the cache: yields what reads all that it says."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    stderr = os.dup(2)
    with tempfile.TemporaryFile("w+") as said:
        os.dup2(said.fileno(), 2)
        try:
            yield lambda: (said.seek(0), said.read())[1]
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            jax.config.update("jax_enable_compilation_cache", True)
            compilation_cache.reset_cache()


@cache
def compiled(name):
    """The step on a mesh, its first state and batch, and what the compiler printed."""
    sizes, spec = MESHES[name]
    at = networks.layout(**sizes)
    state, step = networks.trainer(spec, networks.sgd(), at=at)
    batch = networks.placed(networks.batch(length=LENGTH), at)
    with really_compiling() as said:
        program = step.lower(state, batch).compile()
        return program, state, batch, said()


@cache
def on_one_device(spec):
    state, step = networks.trainer(spec, networks.sgd())
    return step(state, networks.batch(length=LENGTH))


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_make_the_update_of_one(name):
    program, state, batch, _ = compiled(name)
    networks.assert_close(program(state, batch), on_one_device(MESHES[name][1]))


@pytest.mark.parametrize("name", MESHES)
def test_no_activation_is_gathered_whole(name):
    assert "rematerialization" not in compiled(name)[3]


def gathered(name):
    """Shapes of what the program gathers."""
    return re.findall(r"= \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", compiled(name)[0].as_text())


def test_copies_of_the_model_gather_nothing():
    assert gathered("data8") == []


@pytest.mark.parametrize("name", [name for name in MESHES if "fsdp" in name])
def test_sharded_weights_are_gathered_and_no_activations(name):
    assert gathered(name)
    assert not any(str(LENGTH) in shape.split(",") for shape in gathered(name))


@pytest.mark.parametrize("name", ["data8", "fsdp8"])
def test_the_gradient_of_the_head_is_added_up_over_devices_once(monkeypatch, name):
    """And not in each of the loss's chunks. Nothing else has as many rows as the vocabulary."""
    monkeypatch.setattr(xent, "CHUNK_BYTES", LENGTH * 128 * 4 // 3)
    at = networks.layout(**MESHES[name][0])
    state, step = networks.trainer(LLAMA, networks.sgd(), at=at)
    batch = networks.placed(networks.batch(length=LENGTH), at)
    text = step.lower(state, batch).compile().as_text()
    loops = [part for part in re.split(r"\n(?=%|ENTRY)", text) if not part.startswith("ENTRY")]
    reduced = re.findall(r"= (.*) all-reduce(?:-start)?\(", "\n".join(loops))
    assert reduced and not any("[128," in shapes for shapes in reduced)


def build(name, spec, at):
    """(parameters, optimizer, its first state) on a mesh."""
    params = networks.params(spec, at)
    made = optim.build(OPTIMIZERS[name], params, steps=10, axes=AXES)
    return params, made, optim.init_state(made.tx, params, at, AXES)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_device_holds_an_eighth_of_parameters_and_optimizer_state(name):
    params, _, state = build(name, LLAMA, networks.layout(fsdp=8))
    for held in (params, state):
        on_first = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(held))
        assert on_first < 1.1 * tree.nbytes(held) / 8


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_state_lies_where_the_state_lay(name):
    """So that the compiled step takes it: here with Adafactor's rows and columns."""
    spec, at = networks.spec(embed=128, heads=2, layers=1), networks.layout(fsdp=4, tensor=2)
    params, made, opt_state = build(name, spec, at)
    state = TrainState(jax.device_put(0, at.sharding(())), params, opt_state)
    lies = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = networks.plain_step(spec, made.tx, frozenset(tree.flatten(params)), at=at)
    batch = networks.placed(networks.batch(), at)
    program = compile_step(step, state, batch, networks.ROOT)
    for _ in range(2):
        state, _ = program(state, batch, networks.ROOT)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == lies


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"heads": 2, "kv_heads": 2}, "model.heads=2 .* 4 devices; use mesh.tensor=2 mesh.fsdp=4"),
        ({"mlp": 42}, "model.mlp=42 does not split over 4 devices; use mesh.tensor=2 mesh.fsdp=4"),
    ],
)
def test_what_does_not_split_is_refused_with_a_size_that_does(changes, line):
    make = partial(make_forward, layout=networks.layout(fsdp=2, tensor=4), dtype="float32")
    with pytest.raises(ConfigError, match=f"^mesh.tensor: {line}$"):
        make(networks.spec(**changes))


@pytest.mark.parametrize(
    ("changes", "sizes", "line"),
    [
        ({}, {"expert": 4}, "the model has no experts to split; use mesh.expert=1 mesh.fsdp=4"),
        (
            {"experts": {"count": 6}},
            {"fsdp": 2, "expert": 4},
            "model.experts.count=6 does not split over 4 devices; use mesh.expert=2 mesh.fsdp=4",
        ),
        (
            {"experts": {"count": 4}},
            {"fsdp": 2, "expert": 3},
            "model.experts.count=4 does not split over 3 devices; use mesh.expert=2 mesh.fsdp=3",
        ),
    ],
)
def test_experts_that_do_not_split_are_refused(changes, sizes, line):
    with pytest.raises(ConfigError, match=f"^mesh.expert: {line}$"):
        make_forward(networks.spec(**changes), networks.layout(**sizes), "float32")


def test_experts_lie_on_their_devices_and_all_else_is_split_as_by_fsdp():
    at = networks.layout(fsdp=2, expert=4)
    held = networks.params(networks.spec(experts={"count": 4}), at)
    blocks = held["decoder"]["blocks"]
    expert, query = blocks["experts"]["up"]["kernel"], blocks["attn"]["q"]["kernel"]
    assert expert.addressable_shards[0].data.shape == (2, 1, 16, expert.shape[-1])
    assert query.addressable_shards[0].data.shape == (2, 4, *query.shape[2:])
