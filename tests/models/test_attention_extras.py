"""What attention has beside its rows: biases by distance, and keys of another sequence."""

from functools import partial

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.models.backends import attention
from jaxlm.models.flash import chunked
from jaxlm.models.scores import Scores, full, spread


def inputs(length, keys=None, rows=2, heads=4, kv_heads=2, size=8):
    """q, k, v, dy, and biases of every distance."""
    rng, keys = np.random.default_rng(length), keys or length
    shapes = [(rows, length, heads), (rows, keys, kv_heads), (rows, keys, kv_heads)]
    arrays = [rng.normal(size=(*shape, size)).astype(np.float32) for shape in shapes]
    dy = rng.normal(size=arrays[0].shape).astype(np.float32)
    return *arrays, dy, rng.normal(size=(heads, 2 * max(length, keys) - 1)).astype(np.float32)


def values_and_gradients(attend, q, k, v, dy, *more):
    @jax.jit
    def run(dy, *x):
        y, pullback = jax.vjp(attend, *x)
        return y, *pullback(dy)

    return run(dy, q, k, v, *more)


def assert_same(found, right):
    for x, y in zip(found, right, strict=True):
        assert np.abs(x - y).max() <= 1e-5 * np.abs(y).max()


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("keys", [slice(0, 9), slice(4, 7)])
def test_biases_by_distance_are_those_of_pairs(start, keys):
    bias = np.random.default_rng(0).normal(size=(2, 3, 17))
    pairs = np.arange(keys.start, keys.stop)[None] - np.arange(start, start + 5)[:, None]
    found = jax.jit(lambda bias, start: spread(bias, start, 5, keys))(bias, start)
    assert np.array_equal(found, bias[..., pairs + 8].astype(np.float32))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_a_bias_and_its_gradient_are_the_same_in_blocks(packed, causal):
    *arrays, bias = inputs(300)
    rows = np.sort(np.arange(600).reshape(2, 300) % 3) if packed else None
    run = [
        lambda q, k, v, bias, on=on: on(q, k, v, rows, Scores(0.5, causal), bias=bias)
        for on in (chunked, full)
    ]
    assert_same(*(values_and_gradients(each, *arrays, bias) for each in run))


def test_a_bias_in_the_loop_over_blocks_is_of_its_own_queries():
    *arrays, bias = inputs(2100, rows=1, heads=1, kv_heads=1)
    run = [
        lambda q, k, v, bias, on=on: on(q, k, v, None, Scores(0.5, cap=2.0), bias=bias)
        for on in (chunked, full)
    ]
    assert_same(*(values_and_gradients(each, *arrays, bias) for each in run))


@pytest.mark.parametrize(("length", "keys"), [(140, 300), (300, 40)])
def test_a_source_is_seen_by_its_own_segment(length, keys):
    *arrays, _ = inputs(length, keys)
    own, theirs = (np.sort(np.arange(2 * n).reshape(2, n) % 3) for n in (length, keys))
    how = Scores(0.5, causal=False)
    run = [lambda *x, on=on: on(*x, own, how, source=theirs) for on in (chunked, full)]
    assert_same(*(values_and_gradients(each, *arrays) for each in run))


def test_who_has_no_source_gets_the_mean_of_all_and_teaches_nothing():
    *arrays, _ = inputs(6, 9)
    own, theirs = np.array([[1, 1, 2, 2, 3, 0]] * 2), np.array([[1] * 4 + [2] * 5] * 2)
    attend = partial(chunked, segments=own, how=Scores(0.5, causal=False), source=theirs)
    found = values_and_gradients(attend, *arrays)
    mean = np.repeat(arrays[2].mean(1, keepdims=True), 2, axis=2)
    np.testing.assert_allclose(found[0][:, 4:], np.repeat(mean, 2, axis=1), rtol=1e-5)
    arrays[3][:, 4:] = 0
    assert_same(found[1:], values_and_gradients(attend, *arrays)[1:])


@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_a_mesh_changes_no_bias_and_no_source(heads):
    *arrays, bias = inputs(16, 24, 2, *heads)
    own, theirs = (np.sort(np.arange(2 * n).reshape(2, n) % 3) for n in (16, 24))

    def on(at, q, k, v, bias):
        how = Scores(0.5, causal=False)
        return attention(q, k, v, own, layout=at, how=how, bias=bias, source=theirs)

    layouts = networks.layout(fsdp=2, tensor=4), networks.layout()
    assert_same(*(values_and_gradients(partial(on, at), *arrays, bias) for at in layouts))


def test_scores_with_a_bias_are_never_all_in_memory():
    shapes = [jax.ShapeDtypeStruct((1, 1024, 16, 8), jnp.float32)] * 3
    bias = jax.ShapeDtypeStruct((16, 2047), jnp.float32)
    total = lambda *x: chunked(*x[:3], None, Scores(0.25), bias=x[3]).sum()  # noqa: E731
    program = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3))).lower(*shapes, bias).compile()
    assert program.memory_analysis().temp_size_in_bytes < 16 * 1024 * 1024 * 4 / 3
