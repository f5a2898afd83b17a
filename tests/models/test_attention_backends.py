import itertools
from functools import partial

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from jaxlm.core.errors import ConfigError
from jaxlm.models import attention
from jaxlm.models.attention import BACKENDS
from jaxlm.models.gpu import spans

SEGMENTS = {
    "packed": lambda rows, length: np.sort(np.arange(rows * length).reshape(rows, -1) % 3, axis=1),
    "padded": lambda rows, length: (np.arange(length) < np.array([[length - 5]] * rows)) * 1,
    "whole": lambda rows, length: None,
}


def inputs(length, dtype, heads=4, kv_heads=2, size=16):
    keys = jax.random.split(jax.random.key(length), 4)
    shapes = [(2, length, n, size) for n in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def values_and_gradients(attend, q, k, v, dy, segments, causal):
    """y and the gradients of q, k, v, float64."""

    @jax.jit
    def run(q, k, v, dy):
        y, pullback = jax.vjp(lambda *x: attend(*x, segments, causal=causal), q, k, v)
        return y, *pullback(dy)

    return [np.asarray(x, np.float64) for x in run(q, k, v, dy)]


def exact(q, k, v, dy, segments, causal):
    """Vaswani et al. 2017, eq. 1, and its gradients by hand, in float64."""
    q, k, v, dy = (np.asarray(x, np.float64) for x in (q, k, v, dy))
    groups, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    k, v = (np.repeat(x, groups, axis=2) for x in (k, v))
    may = np.ones((1, *[q.shape[1]] * 2), bool)
    if segments is not None:
        may = segments[:, :, None] == segments[:, None]
    may = np.tril(may) if causal else may
    scores = np.where(may[:, None], np.einsum("blnh,bsnh->bnls", q, k) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    dweights = np.einsum("blnh,bsnh->bnls", dy, v)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) * scale
    wide = (np.einsum("bnls,blnh->bsnh", part, x) for part, x in ((dscores, q), (weights, dy)))
    dk, dv = (x.reshape(*x.shape[:2], -1, groups, x.shape[3]).sum(3) for x in wide)
    y = np.einsum("bnls,bsnh->blnh", weights, v)
    return y, np.einsum("bnls,bsnh->blnh", dscores, k), dk, dv


@pytest.mark.parametrize(
    ("backend", "length"),
    [("full", 21), ("chunked", 21), ("chunked", 300)],  # 300: three blocks, one of them short
)
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)], ids=["float32", "bfloat16"]
)
def test_a_backend_is_attention(backend, segments, length, dtype, tolerance):
    rows = SEGMENTS[segments](2, length)
    arrays = inputs(length, jnp.dtype(dtype))
    found = values_and_gradients(BACKENDS[backend], *arrays, rows, causal=True)
    for x, y in zip(found, exact(*arrays, rows, causal=True), strict=True):
        assert np.abs(x - y).max() <= tolerance * np.abs(y).max()


@pytest.mark.parametrize("backend", ["full", "chunked"])
def test_without_a_direction_all_of_a_segment_is_seen(backend):
    rows, arrays = SEGMENTS["packed"](2, 140), inputs(140, jnp.float32)
    found = values_and_gradients(BACKENDS[backend], *arrays, rows, causal=False)
    for x, y in zip(found, exact(*arrays, rows, causal=False), strict=True):
        assert np.abs(x - y).max() <= 1e-5 * np.abs(y).max()


@pytest.mark.parametrize("segments", ["packed", "whole"])
def test_splash_is_attention_too(monkeypatch, segments):
    """The TPU's kernel, interpreted."""
    interpreted = partial(splash_attention_kernel.make_splash_mqa_single_device, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mqa_single_device", interpreted)
    rows = SEGMENTS[segments](2, 128)
    rows = rows if rows is None else rows.astype(np.int32)
    arrays = inputs(128, jnp.float32, size=128)
    found = values_and_gradients(BACKENDS["splash"], *arrays, rows, causal=True)
    for x, y in zip(found, exact(*arrays, rows, causal=True), strict=True):
        assert np.abs(x - y).max() <= 1e-5 * np.abs(y).max()


@pytest.mark.parametrize("segments", ["packed", "whole"])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (12, 6)])  # kv heads: as many, fewer, odd
def test_a_mesh_changes_nothing(segments, heads):
    rows, (q, k, v, dy) = SEGMENTS[segments](2, 16), inputs(16, jnp.float32, *heads)
    run = [
        values_and_gradients(
            lambda *x, causal, at=at: attention.attention(*x, layout=at, causal=causal),
            *(q, k, v, dy, rows),
            causal=True,
        )
        for at in (networks.layout(), networks.layout(fsdp=2, tensor=4))
    ]
    for x, y in zip(*run, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def runs(row):
    """(lengths, offsets) of the runs of equal numbers in a list."""
    lengths = [len(list(same)) for _, same in itertools.groupby(row)]
    return lengths, [sum(lengths[:i]) for i in range(len(lengths))]


ROW = st.lists(st.integers(0, 1), min_size=9, max_size=9)


@given(st.tuples(ROW, ROW), st.sampled_from([3, 5, 9]))
@settings(deadline=None)
def test_spans_are_the_runs_of_a_row(rows, most):
    lengths, offsets, fits = jax.jit(spans, static_argnums=1)(np.array(rows, np.int32), most)
    assert bool(fits) == all(len(runs(row)[0]) <= most for row in rows)
    if fits:
        for i, row in enumerate(rows):
            for found, right in zip((lengths[i], offsets[i]), runs(row), strict=True):
                assert found.tolist() == right + [-1] * (found.size - len(right))


@pytest.mark.parametrize(
    ("where", "dtype", "size", "length", "chosen"),
    [
        ("cpu", "bfloat16", 64, 1024, "chunked"),
        ("gpu", "bfloat16", 64, 1000, "cudnn"),
        ("gpu", "float32", 64, 1024, "chunked"),
        ("gpu", "bfloat16", 60, 1024, "chunked"),
        ("gpu", "bfloat16", 256, 1024, "chunked"),
        ("tpu", "bfloat16", 128, 1024, "splash"),
        ("tpu", "bfloat16", 128, 1000, "chunked"),
        ("tpu", "bfloat16", 64, 1024, "chunked"),
    ],
)
def test_auto_takes_the_fastest_that_is_exact(where, dtype, size, length, chosen):
    assert attention.choose("auto", where, jnp.dtype(dtype), size, length) == chosen


@pytest.mark.parametrize("backend", ["cudnn", "splash"])
def test_a_kernel_that_cannot_run_here_is_refused(backend):
    line = f"^model.attention: {backend} cannot run bfloat16 heads of 128 .* on cpu; use auto$"
    with pytest.raises(ConfigError, match=line):
        attention.choose(backend, "cpu", jnp.bfloat16, 128, 1024)


@pytest.mark.parametrize("backend", ["cudnn", "splash"])
def test_parameters_do_not_depend_on_the_kernel(backend):
    spec = networks.spec()
    asked = spec.model_copy(update={"attention": backend})
    assert networks.params(asked).keys() == networks.params(spec).keys()
