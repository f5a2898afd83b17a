"""What must hold of an encoder, and of the heads that classify, whatever the weights are."""

from functools import cache

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.models.heads import pooled, pooled_segments
from jaxlm.models.transformer import make_forward

SPECS = {name: networks.spec(**changes) for name, changes in networks.ENCODERS.items()}


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


@cache
def hidden(spec, **mesh):
    """batch -> hidden states [B, L, D]."""
    at = networks.layout(**mesh)
    forward, params = make_forward(spec, at, jnp.float32), networks.params(spec, at)
    return jax.jit(lambda batch: forward.hidden(params, batch, None)[0])


def test_every_token_is_seen_from_both_sides(spec):
    batch = networks.batch(packed=False)
    moved = {**batch, "tokens": batch["tokens"].copy()}
    moved["tokens"][:, 8] = (moved["tokens"][:, 8] + 1) % networks.VOCAB
    change = np.abs(hidden(spec)(moved) - hidden(spec)(batch)).max(-1)
    assert (change > 1e-4).all()


def test_a_window_reaches_as_far_to_either_side(spec):
    near = spec.model_copy(
        update={"layers": 1, "window": spec.window.model_copy(update={"size": 4, "full": ()})}
    )
    batch = networks.batch(packed=False)
    moved = {**batch, "tokens": batch["tokens"].copy()}
    moved["tokens"][:, 8] = (moved["tokens"][:, 8] + 1) % networks.VOCAB
    change = np.abs(hidden(near)(moved) - hidden(near)(batch)).max(-1)
    assert (change[:, 5:12] > 1e-5).all()
    assert change[:, :5].max() == change[:, 12:].max() == 0


def test_packed_texts_are_as_they_are_alone(spec):
    batch = networks.batch()
    whole = np.asarray(hidden(spec)(batch))
    for which in (1, 2):
        alone = {**batch, "segments": (batch["segments"] == which).astype(np.int32)}
        shift = [np.flatnonzero(row == which)[0] for row in batch["segments"]]
        for name in ("tokens", "positions", "segments"):
            rolled = [np.roll(row, -by) for row, by in zip(alone[name], shift, strict=True)]
            alone[name] = np.stack(rolled)
        found = np.asarray(hidden(spec)(alone))
        for row, by in enumerate(shift):
            count = int((batch["segments"][row] == which).sum())
            right = whole[row, by : by + count]
            np.testing.assert_allclose(found[row, :count], right, atol=1e-5)


def test_token_types_are_added_and_are_0_by_default():
    spec, batch = SPECS["bert"], networks.batch()
    plain = hidden(spec)(batch)
    zeros = {**batch, "types": np.zeros_like(batch["tokens"])}
    assert np.array_equal(hidden(spec)(zeros), plain)
    assert np.abs(hidden(spec)({**zeros, "types": zeros["types"] + 1}) - plain).max() > 0.01


def test_a_mesh_computes_the_same(spec):
    batch = networks.batch()
    found = hidden(spec, fsdp=4, tensor=2)(
        networks.placed(batch, networks.layout(fsdp=4, tensor=2))
    )
    np.testing.assert_allclose(found, hidden(spec)(batch), atol=2e-5)


def test_what_is_pooled_is_the_first_the_last_or_the_mean_of_real_tokens():
    x = jnp.arange(2 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 3)
    segments = jnp.array([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert np.array_equal(pooled(x, segments, "none"), x)
    assert np.array_equal(pooled(x, segments, "first"), [x[0, 0], x[1, 1]])
    assert np.array_equal(pooled(x, segments, "last"), [x[0, 2], x[1, 3]])
    np.testing.assert_allclose(pooled(x, segments, "mean"), [x[0, :3].mean(0), x[1, 1:].mean(0)])
    assert np.array_equal(pooled(x, None, "last"), x[:, -1])


@pytest.mark.parametrize("how", ["first", "last", "mean"])
def test_of_texts_in_a_row_each_is_pooled_as_it_is_alone(how):
    x = jnp.arange(2 * 6 * 3, dtype=jnp.float32).reshape(2, 6, 3) ** 2
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 2, 3]])
    found = pooled_segments(x, segments, 3, how)
    assert found.shape == (2, 3, 3)
    for row, k in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]:
        alone = pooled(x[row : row + 1], segments[row : row + 1] == k + 1, how)[0]
        np.testing.assert_allclose(found[row, k], alone, rtol=1e-6)
    assert np.isfinite(found).all()  # of the third, which the first row lacks
    spec = networks.spec(head={"labels": 2, "pool": how})
    forward = make_forward(spec, networks.layout(), jnp.float32)
    assert np.array_equal(forward.pooled(x, {"segments": segments}, 3), found)
    assert np.array_equal(forward.pooled(x, {}, 1)[:, 0], pooled(x, None, how))


def test_a_mean_in_16_bits_is_summed_in_32():
    x = jnp.ones((1, 1000, 1), jnp.bfloat16)  # a running sum in bfloat16 stops at 256
    assert pooled(x, None, "mean") == 1


def test_every_leaf_of_a_head_counts(spec):
    forward, params = make_forward(spec, networks.layout(), jnp.float32), networks.params(spec)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, spec.embed)), jnp.float32)
    width = spec.head.labels or spec.vocab
    slopes = jax.grad(lambda head: (forward.logits(head, x)[:, :width] ** 2).sum())(
        forward.head(params)
    )
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))
    assert set(slopes) == {"head"} | ({"embed"} if not spec.head.labels else set())


def test_what_is_added_up_of_16_bit_tables_is_not_rounded(spec):
    """Embeddings, positions and types in bfloat16, computed on in float32: as if they were wide."""
    forward, half = make_forward(spec, networks.layout(), jnp.float32), networks.params(spec)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), half)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    found = [forward.hidden(params, networks.batch(), None)[0] for params in (half, wide)]
    np.testing.assert_allclose(*found, atol=1e-5)
