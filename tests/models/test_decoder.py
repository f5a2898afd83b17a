"""What must hold of the network whatever its weights are."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.core import tree
from jaxlm.models.transformer import make_forward

SPECS = {name: networks.spec(**changes) for name, changes in networks.SHAPES.items()}


@pytest.fixture(scope="module", params=SPECS)
def spec(request):
    return SPECS[request.param]


@cache
def hidden(spec):
    forward = make_forward(spec, networks.layout(), jnp.float32)
    return jax.jit(lambda params, batch: forward.hidden(params, batch, None)[0])


@cache
def loss_and_gradient(spec):
    return jax.jit(jax.value_and_grad(networks.loss(spec)))


def rows(*documents):
    """A row each: the first tokens of a document, padded with what came last."""
    tokens = np.stack([np.resize(doc, networks.LENGTH) for doc in documents])
    at = np.arange(networks.LENGTH)[None]
    real = at < np.array([[len(doc)] for doc in documents])
    return {
        "tokens": tokens,
        "targets": (tokens * 7 + 1) % networks.VOCAB,
        "weights": real.astype(np.float32),
        "segments": real.astype(np.int32),
        "positions": (at * real).astype(np.int32),
    }


def packed(*documents):
    """One row of all of them, and padding; then a row of padding alone."""
    alone, lengths = rows(*documents), [len(doc) for doc in documents]
    cut = {
        name: np.concatenate([array[i, :n] for i, n in enumerate(lengths)])
        for name, array in alone.items()
    }
    cut["segments"] = np.repeat(np.arange(len(lengths)) + 1, lengths)
    pad = ((0, 1), (0, networks.LENGTH - sum(lengths)))
    return {name: np.pad(x[None], pad).astype(alone[name].dtype) for name, x in cut.items()}


def test_a_token_changes_nothing_before_it(spec):
    """Row i differs from the last row in the tokens after i alone."""
    batch = {k: np.repeat(v[:1], 16, axis=0) for k, v in networks.batch(packed=False).items()}
    later = np.arange(16)[None] > np.arange(16)[:, None]
    batch["tokens"] = np.where(later, (batch["tokens"] + 1) % networks.VOCAB, batch["tokens"])
    found = np.asarray(hidden(spec)(networks.params(spec), batch))
    for i in range(15):
        np.testing.assert_allclose(found[i, : i + 1], found[-1, : i + 1], atol=1e-5)
        assert np.abs(found[i, i + 1] - found[-1, i + 1]).max() > 1e-2


def test_packed_rows_equal_separate_rows(spec):
    ids = np.random.default_rng(0).integers(0, networks.VOCAB, 14).astype(np.int32)
    params, documents = networks.params(spec), (ids[:5], ids[5:])
    one, two = packed(*documents), rows(*documents)
    together, apart = (np.asarray(hidden(spec)(params, batch)) for batch in (one, two))
    np.testing.assert_allclose(together[0, :5], apart[0, :5], atol=1e-5)
    np.testing.assert_allclose(together[0, 5:14], apart[1, :9], atol=1e-5)
    networks.assert_close(*(loss_and_gradient(spec)(params, batch) for batch in (one, two)))


def test_padding_changes_nothing(spec):
    ids = np.random.default_rng(1).integers(0, networks.VOCAB, 11).astype(np.int32)
    params, padded = networks.params(spec), rows(ids, ids[:7])
    other = {**padded, "tokens": np.where(padded["segments"], padded["tokens"], 3)}
    exact = {name: array[:, :11] for name, array in padded.items()}
    found = [loss_and_gradient(spec)(params, batch) for batch in (padded, other, exact)]
    networks.assert_close(found[0], found[1])
    networks.assert_close(found[0], found[2])


def test_rows_that_are_whole_need_no_segments(spec):
    batch, params = networks.batch(packed=False), networks.params(spec)
    alone = {k: batch[k] for k in ("tokens", "positions")}
    np.testing.assert_allclose(hidden(spec)(params, alone), hidden(spec)(params, batch), atol=1e-5)


@pytest.mark.parametrize("vocab", [97, 128])
@pytest.mark.parametrize("tied", [True, False])
def test_a_uniform_network_knows_nothing(vocab, tied):
    spec = networks.spec(vocab=vocab, tied=tied, layers=1)
    params = networks.params(spec)
    for name in ("embed", "head") if not tied else ("embed",):
        params[name] = jax.tree.map(jnp.zeros_like, params[name])
    loss = jax.jit(networks.loss(spec))(params, networks.batch())
    assert float(loss) == pytest.approx(math.log(vocab), rel=1e-6)


def test_grouped_heads_are_repeated_heads():
    grouped, many = networks.spec(kv_heads=2), networks.spec(kv_heads=4)
    params = networks.params(grouped)
    repeated = tree.map_named(
        lambda name, x: jnp.repeat(x, 2, axis=2) if "/k/" in name or "/v/" in name else x, params
    )
    found = [hidden(spec)(p, networks.batch()) for spec, p in ((grouped, params), (many, repeated))]
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize(
    "knobs",
    [{"remat": "none"}, {"remat": "full"}, {"unroll": 2}, {"attention": "full"}],
    ids=lambda knobs: "-".join(f"{k}={v}" for k, v in knobs.items()),
)
def test_what_sets_the_speed_changes_neither_tree_nor_gradient(knobs):
    spec, other = networks.spec(), networks.spec(**knobs)
    params, batch = networks.params(spec), networks.batch()
    assert tree.flatten(params).keys() == tree.flatten(networks.params(other)).keys()
    networks.assert_close(*(loss_and_gradient(s)(params, batch) for s in (spec, other)))


def test_the_program_does_not_grow_with_depth():
    def program(layers):
        spec = networks.spec(layers=layers)
        state, step = networks.trainer(spec, networks.sgd())
        return len(step.lower(state, networks.batch()).as_text())

    assert program(24) <= 1.1 * program(2)
