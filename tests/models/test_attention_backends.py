import itertools
import re
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
from jaxlm.models import backends
from jaxlm.models.backends import BACKENDS
from jaxlm.models.flash import _spans
from jaxlm.models.gpu import spans
from jaxlm.models.scores import Scores

SEGMENTS = {
    "packed": lambda rows, length: np.sort(np.arange(rows * length).reshape(rows, -1) % 3, axis=1),
    "padded": lambda rows, length: (np.arange(length) < np.array([[length - 5]] * rows)) * 1,
    "whole": lambda rows, length: None,
}


def inputs(length, dtype, heads=4, kv_heads=2, size=16):
    keys = jax.random.split(jax.random.key(length), 4)
    shapes = [(2, length, n, size) for n in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def values_and_gradients(attend, q, k, v, dy, segments, **how):
    """y and the gradients of q, k, v, float64."""
    scores = Scores(**{"scale": q.shape[-1] ** -0.5, **how})

    @jax.jit
    def run(q, k, v, dy):
        y, pullback = jax.vjp(lambda *x: attend(*x, segments, how=scores), q, k, v)
        return y, *pullback(dy)

    return [np.asarray(x, np.float64) for x in run(q, k, v, dy)]


def exact(q, k, v, dy, segments, causal=True, scale=None, window=0, cap=0.0):
    """Vaswani et al. 2017, eq. 1, and its gradients by hand, in float64."""
    q, k, v, dy = (np.asarray(x, np.float64) for x in (q, k, v, dy))
    groups, scale = q.shape[2] // k.shape[2], scale or q.shape[3] ** -0.5
    k, v = (np.repeat(x, groups, axis=2) for x in (k, v))
    may = np.ones((1, *[q.shape[1]] * 2), bool)
    if segments is not None:
        may = segments[:, :, None] == segments[:, None]
    may = np.tril(may) if causal else may
    if window:
        may = np.tril(np.triu(may, 1 - window), window - 1)
    q, k, v, dy = (x.transpose(0, 2, 1, 3) for x in (q, k, v, dy))  # "bnlh": products are matmul's
    scores = q @ k.swapaxes(2, 3) * scale
    slope = 1 - np.tanh(scores / cap) ** 2 if cap else 1.0
    scores = np.where(may[:, None], cap * np.tanh(scores / cap) if cap else scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y, dweights = weights @ v, dy @ v.swapaxes(2, 3)
    dscores = weights * (dweights - (dy * y).sum(-1, keepdims=True)) * scale * slope
    made = (y, dscores @ k, dscores.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ dy)
    y, dq, dk, dv = (x.transpose(0, 2, 1, 3) for x in made)
    dk, dv = (x.reshape(*x.shape[:2], -1, groups, x.shape[3]).sum(3) for x in (dk, dv))
    return y, dq, dk, dv


@pytest.mark.parametrize(
    ("backend", "length"),
    [("full", 21), ("chunked", 21), ("chunked", 300), ("chunked", 2400)],
)
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)], ids=["float32", "bfloat16"]
)
def test_a_backend_is_attention(backend, segments, length, dtype, tolerance):
    rows = SEGMENTS[segments](2, length)
    arrays = inputs(length, jnp.dtype(dtype), heads=2, kv_heads=1)
    found = values_and_gradients(BACKENDS[backend], *arrays, rows)
    for x, y in zip(found, exact(*arrays, rows), strict=True):
        assert np.abs(x - y).max() <= tolerance * np.abs(y).max()


HOWS = {
    "both ways": {"causal": False},
    "window": {"window": 37},
    "window both ways": {"window": 37, "causal": False},
    "capped and scaled": {"cap": 0.7, "scale": 0.5},
    "all": {"cap": 0.7, "scale": 0.5, "window": 150},
}


@pytest.mark.parametrize("backend", ["full", "chunked"])
@pytest.mark.parametrize("segments", ["packed", "whole"])
@pytest.mark.parametrize("how", HOWS)
def test_every_way_to_score_is_the_same_in_every_backend(backend, segments, how):
    rows, arrays = SEGMENTS[segments](2, 300), inputs(300, jnp.float32)
    found = values_and_gradients(BACKENDS[backend], *arrays, rows, **HOWS[how])
    for x, y in zip(found, exact(*arrays, rows, **HOWS[how]), strict=True):
        assert np.abs(x - y).max() <= 1e-5 * np.abs(y).max()


def test_blocks_outside_the_window_are_not_computed():
    start, count, size, cols = _spans(2048, 2048, Scores(1.0, window=128))[-1]
    assert (start, count, size, cols.start, cols.stop) == (1920, 1, 128, 1793, 2048)


@given(st.integers(1, 6000), st.sampled_from([Scores(1.0), Scores(1.0, window=300)]))
@settings(deadline=None)
def test_spans_hold_every_query_once_and_all_that_it_sees(length, how):
    at, spans = 0, _spans(length, length, how)
    for start, count, size, cols in spans:
        assert start == at and size <= 128
        at = start + count * size
        assert cols.start <= max(0, start - how.window + 1) * bool(how.window) and cols.stop >= at
    assert at == length and len(spans) <= 17


def test_temporaries_grow_with_the_length_and_not_with_its_square():
    def temporaries(length):
        shapes = [jax.ShapeDtypeStruct((1, length, n, 16), jnp.float32) for n in (2, 1, 1)]
        total = lambda *x: BACKENDS["chunked"](*x, None, Scores(0.25)).sum()  # noqa: E731
        program = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*shapes).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(16384) < 5 * temporaries(4096)


def test_in_sixteen_bits_an_accelerator_rounds_operands_and_no_sum(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    arrays = inputs(300, jnp.bfloat16)

    def both(q, k, v, dy):
        y, pullback = jax.vjp(lambda *x: BACKENDS["chunked"](*x, None, Scores(0.25)), q, k, v)
        return y, pullback(dy)

    text = jax.jit(both).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    products = re.findall(r"dot_general .*: \((.*), (.*)\) -> (\S+)", text)
    assert len(products) >= 7
    for a, b, y in products:
        assert a.endswith("bf16>") and b.endswith("bf16>") and y.endswith("f32>")


@pytest.mark.parametrize("segments", ["packed", "whole"])
@pytest.mark.parametrize("how", ["plain", *HOWS])
def test_splash_is_attention_too(monkeypatch, segments, how):
    """The TPU's kernel, interpreted."""
    interpreted = partial(splash_attention_kernel.make_splash_mqa_single_device, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mqa_single_device", interpreted)
    rows = SEGMENTS[segments](2, 128)
    rows = rows if rows is None else rows.astype(np.int32)
    arrays = inputs(128, jnp.float32, size=128)
    how = HOWS.get(how, {})
    found = values_and_gradients(BACKENDS["splash"], *arrays, rows, **how)
    for x, y in zip(found, exact(*arrays, rows, **how), strict=True):
        assert np.abs(x - y).max() <= 1e-5 * np.abs(y).max()


@pytest.mark.parametrize("segments", ["packed", "whole"])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (12, 6)])  # kv heads: as many, fewer, odd
def test_a_mesh_changes_nothing(segments, heads):
    rows, (q, k, v, dy) = SEGMENTS[segments](2, 16), inputs(16, jnp.float32, *heads)
    run = [
        values_and_gradients(partial(backends.attention, layout=at), *(q, k, v, dy, rows))
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
    plain = Scores(size**-0.5)
    assert backends.choose("auto", where, jnp.dtype(dtype), size, length, plain) == chosen


def test_auto_takes_no_kernel_that_cannot_cap_scores():
    chosen = backends.choose("auto", "gpu", jnp.bfloat16, 64, 1024, Scores(1.0, cap=50.0))
    assert chosen == "chunked"


@pytest.mark.parametrize("backend", ["cudnn", "splash"])
def test_a_kernel_that_cannot_run_here_is_refused(backend):
    line = f"^model.attention: {backend} cannot run bfloat16 heads of 128 .* on cpu; use auto$"
    with pytest.raises(ConfigError, match=line):
        backends.choose(backend, "cpu", jnp.bfloat16, 128, 1024, Scores(1.0))


@pytest.mark.parametrize("backend", ["cudnn", "splash"])
def test_parameters_do_not_depend_on_the_kernel(backend):
    spec = networks.spec()
    asked = spec.model_copy(update={"attention": backend})
    assert networks.params(asked).keys() == networks.params(spec).keys()
