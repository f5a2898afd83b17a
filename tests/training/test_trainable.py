"""What is frozen costs nothing and stays what it was, rows of a leaf too; the receipt of it."""

import json

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import processes
import pytest

from jaxlm.core import parts, tree
from jaxlm.core.errors import ConfigError
from jaxlm.models import depth, lora
from jaxlm.models.axes import AXES
from jaxlm.models.cache import empty_cache
from jaxlm.models.transformer import make_forward
from jaxlm.training import optim, receipt

ADAMW = optax.adamw(1e-2, weight_decay=0.1)
SPEC = networks.spec(layers=4, tied=False, unroll=4)


def start(count=0, *, rank=0, at=None, spec=SPEC):
    """The network's parameters as a run has them."""
    params = networks.params(spec, at)
    if rank:
        how = {"rank": rank, "alpha": 1.0, "targets": ["attn/(q|v)/kernel"]}
        params = lora.add(params, at or networks.layout(), jax.random.key(0), **how)
    return depth.split(params, at or networks.layout(), count) if count else params


def mask(params, *patterns):
    names = [name for name in tree.flatten(params) if not name.endswith("lora_scale")]
    return frozenset(n for found in parts.matched(names, patterns).values() for n in found)


def trainer(params, *patterns, spec=SPEC, at=None, tx=ADAMW):
    return networks.trainer(spec, tx, start=params, trainable=mask(params, *patterns), at=at)


def flops(params, *patterns):
    """Of the lowered step: XLA counts a loop's body once, so the loops are unrolled."""
    state, step = trainer(params, *patterns)
    return step.lower(state, networks.batch()).cost_analysis()["flops"]


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_the_layers_below_are_bit_for_bit_what_they_were(sizes):
    at = networks.layout(**sizes)
    state, step = trainer(start(2, at=at), "last_layers: 2", "head", at=at)
    for _ in range(3):
        state, _ = step(state, networks.placed(networks.batch(), at))
    before = tree.flatten(networks.params(SPEC, at))
    for name, leaf in tree.flatten(depth.joined(state.params, at)).items():
        same = np.asarray(leaf) == np.asarray(before[name])
        if "/blocks/" in name:
            assert same[:2].all() and not same[2:].all(), name
        else:
            assert same.all() == (not name.startswith("head/")), name


def test_a_split_stack_computes_what_the_whole_one_does():
    at, batch = networks.layout(), networks.batch()
    forward = make_forward(SPEC, at, jnp.float32)
    run = jax.jit(lambda params: forward.hidden(params, batch, None)[0])
    networks.assert_close({"y": run(start(1))}, {"y": run(start())}, 1e-6)
    cache = empty_cache(4, 8, 16, SPEC.kv_heads, SPEC.head_dim, jnp.float32)
    for part in (slice(0, 5), slice(5, 6)):
        step = jax.jit(forward.decode)
        tokens = batch["tokens"][:, part]
        found, split = step(start(3), tokens, cache)
        right, cache = step(start(), tokens, cache)
        networks.assert_close((found, split), (right, cache), 1e-6)
    slope = jax.grad(networks.loss(SPEC))
    networks.assert_close(depth.joined(slope(start(3), batch), at), slope(start(), batch))


@pytest.mark.parametrize("spec", [SPEC, networks.spec(**networks.SHAPES["gemma"])])
def test_split_and_join_are_inverse(spec):
    at = networks.layout(fsdp=2)
    for count in range(1, spec.layers + 1):
        split = start(count, rank=2, at=at, spec=spec)
        assert (parts.LOWER in split["decoder"]) == (count < spec.layers)
        networks.assert_same(depth.joined(split, at), start(rank=2, at=at, spec=spec))
    with pytest.raises(ConfigError, match=r"^trainable: last_layers: 9 of a model of \d; use "):
        start(9, at=at, spec=spec)


def test_what_is_frozen_has_no_gradient_and_no_state():
    full = flops(start(), ".")
    adapters, last = flops(start(rank=1), "lora"), flops(start(1), "last_layers: 1")
    assert adapters < 0.72 * full  # forward and input's gradient: two products of three
    assert last < 0.55 * full  # and below the last layer nothing but the forward pass
    params = start(1)
    state, _ = trainer(params, "last_layers: 1")
    live, _ = tree.partition(params, mask(params, "last_layers: 1"))
    assert tree.nbytes(state.opt_state) == 2 * tree.nbytes(live) + 4
    blocks = [leaf for name, leaf in tree.flatten(params).items() if "/blocks/" in name]
    assert tree.nbytes(live) == tree.nbytes(blocks)


def test_without_its_adapters_a_trained_model_is_its_base():
    state, step = trainer(start(rank=2), "lora")
    for _ in range(2):
        state, _ = step(state, networks.batch())
    leaves = tree.flatten(state.params)
    bare = tree.unflatten({n: leaf for n, leaf in leaves.items() if "/lora_" not in n})
    networks.assert_same(bare, start())


@pytest.mark.parametrize(
    ("count", "patterns"),
    [(0, ["."]), (0, ["norms", "embeddings"]), (1, ["last_layers: 1", "head"]), (0, ["lora"])],
)
@pytest.mark.parametrize("tx", [ADAMW, optax.lion(1e-3), optax.adafactor(1e-3)])
def test_the_receipt_has_the_bytes_of_the_real_state(count, patterns, tx):
    at, params = networks.layout(), start(count, rank=2)
    state, _ = trainer(params, *patterns, tx=tx)
    chosen, meant = mask(params, *patterns), parts.matched(tree.flatten(params), patterns)
    shapes = jax.eval_shape(lambda: params)
    live, _ = tree.partition(shapes, chosen)
    found = receipt.receipt(meant, shapes, chosen, optim.state_shapes(tx, live, at, AXES))
    assert found["bytes"] == {
        "weights": tree.nbytes(state.params),
        "gradients": tree.nbytes(live),
        "optimizer": tree.nbytes(state.opt_state),
    }
    assert found["trained"] == sum(row["trained"] for row in found["types"].values())
    assert found["parameters"] == sum(row["parameters"] for row in found["types"].values())
    assert found["share"] == found["trained"] / found["parameters"]


def test_a_run_of_the_last_layers_says_what_it_trains_goes_on_and_is_used(tmp_path):
    words = processes.words(tmp_path, "trainable=[norms, last_layers: 1]", "checkpoint.every=1")
    code, out, error = processes.run(*words, "steps=1")
    assert code == 0, error
    kept = json.loads((tmp_path / "run" / "trainable.json").read_text())
    assert list(kept["patterns"]) == ["norms", "last_layers: 1"]
    assert 0 < kept["types"]["attention"]["trained"] < kept["types"]["attention"]["parameters"]
    assert kept["types"]["embeddings"]["trained"] == 0
    assert "norms (3 tensors, 160)" in out and "  attention  " in out
    code, _, error = processes.run(*words, "steps=3")
    assert code == 0, error
    code, out, error = processes.run(
        "generate", f"{tmp_path}/run", "--prompt", "import", "--max-tokens", "2"
    )
    assert code == 0, error
    code, out, error = processes.run("inspect", f"{tmp_path}/run")
    assert code == 0 and parts.LOWER not in out and "decoder/blocks/attn/q/kernel" in out, error
