"""The chunked divergence against the plain one, and the objective that adds it."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.core import tree
from jaxlm.models import lora
from jaxlm.models.heads import product
from jaxlm.models.transformer import make_forward
from jaxlm.objectives import xent
from jaxlm.objectives.divergence import divergence, divergence_from, likeliest
from jaxlm.objectives.lm import language_model

ROWS, LENGTH, EMBED, VOCAB = 4, 12, 8, 300


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Five tokens of a group at once: the length is cut, and filled up."""
    monkeypatch.setattr(xent, "CHUNK_BYTES", 5 * VOCAB * 4)


def logits(head, x):
    return product(x, head)


def side(seed, near=None, by=1.0):
    rng = np.random.default_rng(seed)
    made = tuple(rng.normal(size=s).astype("f4") for s in ((VOCAB, EMBED), (ROWS, LENGTH, EMBED)))
    return made if near is None else tuple(a + by * b for a, b in zip(near, made, strict=True))


BASE = side(0)
TUNED = side(1, BASE, 0.1)
WEIGHTS = np.random.default_rng(2).uniform(0, 2, (ROWS, LENGTH)).astype(np.float32)


def plain(base, tuned):
    p, q = (jax.nn.log_softmax(x @ head.T) for head, x in (base, tuned))
    return ((jnp.exp(p) * (p - q)).sum(-1) * WEIGHTS).sum()


@pytest.mark.parametrize("shards", [1, 2])
def test_it_is_the_divergence_and_flows_to_the_tuned_alone(shards):
    def chunked(base, tuned):
        return divergence(logits, base, tuned, WEIGHTS, shards=shards)

    found, slopes = jax.value_and_grad(chunked, argnums=(0, 1))(BASE, TUNED)
    right, slope = jax.value_and_grad(plain, argnums=1)(BASE, TUNED)
    np.testing.assert_allclose(found, right, rtol=1e-5)
    assert not any(np.any(leaf) for leaf in slopes[0])
    for mine, its in zip(slopes[1], slope, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)
    assert divergence(logits, BASE, BASE, WEIGHTS) == 0


def test_what_is_kept_bounds_it_from_below_and_all_of_it_is_it():
    right = float(plain(BASE, TUNED))
    bounds = [
        float(divergence_from(logits, likeliest(logits, BASE, count), TUNED, WEIGHTS))
        for count in (1, 8, 64, VOCAB)
    ]
    assert bounds[0] > 0 and bounds == sorted(bounds)
    np.testing.assert_allclose(bounds[-1], right, rtol=1e-4)


def test_the_objective_adds_it_under_its_own_name():
    spec, at = networks.spec(), networks.layout()
    how = {"rank": 2, "alpha": 4.0, "targets": ["attention"]}
    fresh = lora.add(networks.params(spec), at, networks.ROOT, **how)
    moved = tree.map_named(lambda name, x: x + 0.1 * name.endswith("lora_b"), fresh)
    forward, batch = make_forward(spec, at, jnp.float32), networks.batch()
    keys = jax.random.split(networks.ROOT, ROWS)
    kept = language_model(z_loss=0.0, shards=1, kl_to_base=0.5, base=lora.without)
    free = language_model(z_loss=0.0, shards=1)
    assert kept.loss(forward, fresh, batch, keys).auxiliary["kl_to_base"] == 0
    sums, pure = (each.loss(forward, moved, batch, keys) for each in (kept, free))
    assert sums.loss == pure.loss and pure.auxiliary == {}
    assert kept.loss(forward, moved, batch, None).auxiliary == {}  # an evaluation
    p, q = (
        jax.nn.log_softmax(forward.logits(forward.head(each), forward.hidden(each, batch, None)[0]))
        for each in (lora.without(moved), moved)
    )
    right = ((jnp.exp(p) * (p - q)).sum(-1) * batch["weights"]).sum()
    np.testing.assert_allclose(sums.auxiliary["kl_to_base"], 0.5 * right, rtol=1e-4)
