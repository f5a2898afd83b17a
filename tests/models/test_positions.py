import math
import re

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from pydantic import ValidationError

from jaxlm.models.rope import rotary, rotate
from jaxlm.models.spec import Rope
from jaxlm.models.transformer import make_forward

LLAMA3 = Rope(theta=500000.0, scaling="llama3", factor=8.0, original_length=8192)


def angles(head_dim, rope):
    """Radians per position [H/2], float64, read off cosines and sines at position 1."""
    cos, sin = rotary(jnp.ones((1, 1), jnp.int32), head_dim, rope)
    return np.arctan2(np.float64(sin), np.float64(cos))[0, 0]


def test_frequencies_are_those_of_the_paper():
    right = [10000.0 ** (-2 * i / 64) for i in range(32)]  # Su et al. 2021, section 3.2.2
    np.testing.assert_allclose(angles(64, Rope()), right, rtol=1e-5)


def test_llama3_stretches_long_waves_alone():
    """Wave by wave, as Llama 3.1's own code decides: kept, stretched, or in between."""
    right = []
    for i in range(64):
        frequency = 500000.0 ** (-2 * i / 128)
        wave = 2 * math.pi / frequency
        if wave > 8192 / 1.0:
            frequency /= 8
        elif wave > 8192 / 4.0:
            smooth = (8192 / wave - 1.0) / (4.0 - 1.0)
            frequency = (1 - smooth) * frequency / 8 + smooth * frequency
        right.append(frequency)
    np.testing.assert_allclose(angles(128, LLAMA3), right, rtol=1e-5)
    plain = angles(128, Rope(theta=500000.0))
    assert (right[0], right[-1] * 8) == pytest.approx((plain[0], plain[-1]), rel=1e-5)


def test_halves_are_turned_as_pairs():
    """Element i and i + H/2 are one complex number times exp(i * position * frequency)."""
    x = np.random.default_rng(0).normal(size=(1, 5, 2, 8)).astype(np.float32)
    at = np.array([[0, 3, 7, 100, 1000]])
    turned = np.asarray(rotate(jnp.asarray(x), rotary(jnp.asarray(at), 8, Rope())))
    turn = np.exp(1j * at[..., None] * 10000.0 ** (-np.arange(4) / 4))[:, :, None]
    right = (x[..., :4] + 1j * x[..., 4:]) * turn
    np.testing.assert_allclose(turned, np.concatenate([right.real, right.imag], -1), atol=1e-4)


@pytest.mark.parametrize("rope", [Rope(), LLAMA3], ids=["plain", "llama3"])
def test_scores_depend_on_distance_alone(rope):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 6, 1, 16))
    at = jnp.arange(6)[None]

    def scores(shift):
        turn = rotary(at + shift, 16, rope)
        return jnp.einsum("blnh,bsnh->bls", rotate(q, turn), rotate(k, turn))

    np.testing.assert_allclose(scores(0), scores(500), atol=2e-3)
    assert jnp.abs(scores(0) - jnp.einsum("blnh,bsnh->bls", q, k)).max() > 0.1


def test_a_shifted_row_has_the_same_hidden_states():
    spec, batch = networks.spec(), networks.batch(packed=False)
    forward = make_forward(spec, networks.layout(), jnp.float32)
    run = jax.jit(lambda params, batch: forward.hidden(params, batch, None)[0])
    far = {**batch, "positions": batch["positions"] + 100}
    found = [run(networks.params(spec), each) for each in (batch, far)]
    np.testing.assert_allclose(*found, atol=1e-3)


def test_learned_positions_are_rows_added_to_the_embedding():
    spec = networks.spec(**networks.GPT2)
    params, batch = networks.params(spec), networks.batch()
    forward = make_forward(spec, networks.layout(), jnp.float32)
    run = jax.jit(lambda params, batch: forward.hidden(params, batch, None)[0])
    moved = {**batch, "positions": batch["positions"][:, ::-1]}
    table = params["decoder"]["positions"]["embedding"]

    def placed(params, rows):
        return {**params, "decoder": {**params["decoder"], "positions": {"embedding": rows}}}

    assert table.shape == (networks.LENGTH, spec.embed)
    assert np.abs(run(params, moved) - run(params, batch)).max() > 0.1
    bare = placed(params, jnp.zeros_like(table))
    networks.assert_same(run(bare, moved), run(bare, batch))
    shift = jnp.full_like(table, 0.5)
    lifted = {**bare, "embed": {"embedding": params["embed"]["embedding"] + 0.5}}
    found = run(placed(params, shift), batch), run(lifted, batch)
    np.testing.assert_allclose(*found, atol=1e-5)


def test_without_positions_order_shows_through_causality_alone():
    spec, batch = networks.spec(positions="none", layers=1), networks.batch(packed=False)
    forward = make_forward(spec, networks.layout(), jnp.float32)
    run = jax.jit(lambda params, batch: forward.hidden(params, batch, None)[0])
    swapped = {**batch, "tokens": batch["tokens"][:, [1, 0, *range(2, networks.LENGTH)]]}
    found = [np.asarray(run(networks.params(spec), each)) for each in (batch, swapped)]
    np.testing.assert_allclose(found[0][:, 2:], found[1][:, 2:], atol=1e-5)
    assert np.abs(found[0][:, 0] - found[1][:, 0]).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rope": {"share": 0.1}}, "rope.share=0.1 of head_dim=8 turns nothing; use 0.25 or more"),
        ({"rope": {"scaling": "yarn", "original_length": 1}}, "needs rope.original_length=2"),
        ({"rope": {"scaling": "longrope"}}, "need 4 factors each"),
        ({"experts": {"count": 2}, "gated": False}, "experts are gated and have no bias"),
        ({"experts": {"count": 2, "chosen": 3}}, "use experts.chosen=2 or less"),
        ({"window": {"size": 4, "full": [7]}}, "use layers from 0 to 1"),
        ({"embed": 96, "heads": 12, "kv_heads": 8}, "kv_heads=8; use kv_heads=4"),
        ({"layers": 6, "unroll": 4}, "unroll=4; use unroll=2"),
    ],
)
def test_a_shape_that_cannot_be_computed_is_refused(changes, line):
    with pytest.raises(ValidationError, match=re.escape(line)):
        networks.spec(**changes)


@pytest.mark.parametrize("scaling", ["linear", "dynamic", "llama3", "yarn", "longrope"])
def test_a_scaling_turns_slower_than_none(scaling):
    """Nothing turns faster, and the longest wave is stretched by the whole factor or by theta."""
    rope = Rope(
        scaling=scaling, factor=4.0, original_length=64, short=(1.0,) * 32, long=(4.0,) * 32
    )
    at = jnp.array([[1, 255]])
    plain, found = (rotary(at, 64, each, 256) for each in (Rope(), rope))
    slow, fast = (np.arctan2(*map(np.asarray, t[::-1]))[0, 0] for t in (found, plain))
    assert (slow <= fast * 1.0001).all() and slow[-1] < 0.5 * fast[-1]
