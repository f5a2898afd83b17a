"""The chunked loss is the loss: of full logits, differentiated by jax."""

from functools import partial

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.models.transformer import make_forward
from jaxlm.objectives import xent
from jaxlm.objectives.xent import Loss, chunks, cross_entropy

SPEC = networks.spec(vocab=97, layers=1)
FORWARD = make_forward(SPEC, networks.layout(), jnp.float32)


def inputs(rows, length, seed=0):
    rng = np.random.default_rng([rows, length, seed])
    x = rng.normal(size=(rows, length, SPEC.embed)).astype(np.float32)
    weights = rng.uniform(0, 2, (rows, length)) * rng.integers(0, 2, (rows, length))
    targets = rng.integers(0, SPEC.vocab, (rows, length))
    head = {"embed": {"embedding": rng.normal(size=(128, SPEC.embed)).astype(np.float32)}}
    return head, x, targets.astype(np.int32), weights.astype(np.float32)


def chunked(z, head, x, targets, weights):
    return cross_entropy(FORWARD.logits, head, x, targets, weights, z=z)


def full(z, head, x, targets, weights):
    """Every logit at once, from jax.nn."""
    logits = FORWARD.logits(head, x)[..., : SPEC.vocab]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    loss = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    right = logits.argmax(-1) == targets
    return Loss(*((term * weights).sum() for term in (loss, z * log_z**2, right)))


def value_and_gradients(compute, scale, z, head, x, targets, weights):
    def total(head, x):
        sums = compute(z, head, x, targets, weights)
        return scale * (sums.loss + sums.z_loss), sums

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (_, sums), gradients = run(head, x)
    return sums, gradients


@pytest.mark.parametrize("z", [0.0, 0.01])
@pytest.mark.parametrize(
    ("length", "size", "parts"), [(12, 12, 1), (12, 4, 3), (12, 1, 12), (13, 4, 4)]
)
@pytest.mark.parametrize("scale", [1.0, -0.3])  # the cotangent
def test_chunks_change_neither_sums_nor_gradients(monkeypatch, z, length, size, parts, scale):
    arrays = inputs(2, length)
    monkeypatch.setattr(xent, "CHUNK_BYTES", 2 * size * 128 * 4)
    assert chunks(2, length, 128) == parts
    found, right = (value_and_gradients(f, scale, z, *arrays) for f in (chunked, full))
    networks.assert_close(found, right)


@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, 3), length=st.integers(1, 9), budget=st.integers(1, 8000))
def test_any_shape_and_any_budget_give_the_same_loss(rows, length, budget):
    kept, xent.CHUNK_BYTES = xent.CHUNK_BYTES, budget
    try:
        found = jax.jit(partial(chunked, 0.01))(*inputs(rows, length))
    finally:
        xent.CHUNK_BYTES = kept
    networks.assert_close(found, jax.jit(partial(full, 0.01))(*inputs(rows, length)))


@given(rows=st.integers(1, 64), length=st.integers(1, 5000), vocab=st.integers(1, 300_000))
def test_a_chunk_stays_under_the_budget_unless_it_is_one_token_wide(rows, length, vocab):
    count = chunks(rows, length, vocab)
    size = -(-length // count)
    assert rows * size * vocab * 4 <= xent.CHUNK_BYTES or size == 1


@given(rows=st.integers(1, 64), length=st.integers(1, 5000), vocab=st.integers(1, 100_000))
def test_no_length_makes_many_more_chunks_than_the_budget_does(rows, length, vocab):
    needed = rows * length * vocab * 4 / xent.CHUNK_BYTES
    room = xent.CHUNK_BYTES // (rows * vocab * 4)
    assert chunks(rows, length, vocab) <= max(2, 4 * needed) or room == 0


def test_tokens_without_weight_have_no_gradient():
    head, x, targets, weights = inputs(2, 6)
    weights[:, ::2] = 0
    _, (_, dx) = value_and_gradients(chunked, 1.0, 0.01, head, x, targets, weights)
    assert not np.asarray(dx)[:, ::2].any() and np.asarray(dx)[:, 1::2].any()


def test_bfloat16_costs_precision_and_nothing_else():
    head, x, targets, weights = inputs(2, 8)
    forward = make_forward(SPEC, networks.layout(), jnp.bfloat16)

    def half(z, head, x, targets, weights):
        return cross_entropy(forward.logits, head, x, targets, weights, z=z)

    narrow = x.astype(jnp.bfloat16)
    sums, gradients = value_and_gradients(half, 1.0, 0.0, head, narrow, targets, weights)
    assert [leaf.dtype for leaf in jax.tree.leaves(gradients)] == [jnp.float32, jnp.bfloat16]
    right = value_and_gradients(full, 1.0, 0.0, head, x, targets, weights)
    networks.assert_close((sums.loss, gradients), (right[0].loss, right[1]), 3e-2)


def test_temporaries_are_a_chunk_and_the_gradients():
    """4096 tokens of a vocabulary of 50304, width 512, float32: 1648 MB with full logits."""
    spec = networks.spec(vocab=50304, embed=512, layers=1)
    forward = make_forward(spec, networks.layout(), jnp.float32)

    def loss(head, x, targets, weights):
        return cross_entropy(forward.logits, head, x, targets, weights, z=1e-4).loss

    floats, ids = (jax.ShapeDtypeStruct((8, 512), dtype) for dtype in ("float32", "int32"))
    head = {"embed": {"embedding": jax.ShapeDtypeStruct((50304, 512), jnp.float32)}}
    x = jax.ShapeDtypeStruct((8, 512, 512), jnp.float32)
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(head, x, ids, floats).compile()
    assert run.memory_analysis().temp_size_in_bytes < 200e6
