"""Rows of new ids apart from their tables: the same network, of which they alone are trained."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.core import parts, tree
from jaxlm.models import rows
from jaxlm.models.cache import empty_cache
from jaxlm.models.transformer import make_forward

FIRST = networks.VOCAB - 3
SPECS = {
    "own head": networks.spec(tied=False),
    "tied": networks.spec(tied=True, scale={"embed": 2.0}),
}
MESHES = [{}, {"data": 2, "fsdp": 2, "tensor": 2}]


def start(spec, at):
    return rows.split(networks.params(spec, at), at, FIRST, spec.vocab)


def batch():
    """Half of its ids are new."""
    made = networks.batch()
    new = np.random.default_rng(0).random(made["tokens"].shape) < 0.5
    tokens = np.where(new, FIRST + made["tokens"] % 3, made["tokens"])
    return made | {"tokens": tokens.astype(np.int32)}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_table_in_two_leaves_is_the_table(spec, mesh):
    at = networks.layout(**mesh)
    whole, apart = networks.params(spec, at), start(spec, at)
    again = rows.joined(apart, at, spec.vocab)
    networks.assert_same(again, whole)
    zeroed = {
        name: leaf.at[FIRST:].set(0) if name == "embed/embedding" else leaf
        for name, leaf in tree.flatten(apart).items()
    }  # what the table keeps of them is read no more
    forward = make_forward(spec, at, jnp.float32)

    @jax.jit
    def logits(params, made):
        return forward.logits(forward.head(params), forward.hidden(params, made, None)[0])

    made = networks.placed(batch(), at)
    found, right = logits(tree.unflatten(zeroed), made), logits(whole, made)
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_new_rows_alone_learn_what_they_would_in_the_table(spec, mesh):
    at = networks.layout(**mesh)
    params = start(spec, at)
    names = parts.matched(tree.flatten(params), ["new_rows"])["new_rows"]
    assert len(names) == 2 - spec.tied
    made = networks.placed(batch(), at)
    state, step = networks.trainer(
        spec, networks.sgd(), start=params, trainable=frozenset(names), at=at
    )
    state, _ = step(state, made)
    before, after = tree.flatten(start(spec, at)), tree.flatten(state.params)
    for name, leaf in after.items():
        assert (name in names) != np.array_equal(leaf, before[name]), name
    full, step = networks.trainer(spec, networks.sgd(), start=networks.params(spec, at), at=at)
    full = tree.flatten(rows.split(step(full, made)[0].params, at, FIRST, spec.vocab))
    for name in names:
        np.testing.assert_allclose(after[name], full[name], rtol=1e-4, atol=1e-6)


def test_new_rows_are_read_in_generation():
    spec, at = SPECS["own head"], networks.layout()
    forward = make_forward(spec, at, jnp.float32)
    cache = empty_cache(spec.layers, 8, 16, spec.kv_heads, spec.head_dim, jnp.float32)
    made = batch()["tokens"][:, :5]
    found, right = (
        jax.jit(forward.decode)(params, made, cache)[0]
        for params in (start(spec, at), networks.params(spec, at))
    )
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)
