import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.core import tree
from jaxlm.models.dense import dropout
from jaxlm.models.transformer import make_forward

KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(8))
SPEC = networks.spec(**networks.GPT2, dropout=0.5, layers=1)


def test_a_share_is_dropped_and_the_rest_scaled():
    found = np.asarray(dropout(jnp.ones((8, 64, 64)), 0.25, KEYS, 3))
    assert np.mean(found == 0) == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(found[found > 0], 1 / 0.75, rtol=1e-6)


def test_a_rows_noise_is_its_own_at_every_site():
    x = jnp.ones((8, 4, 16))
    found, moved = dropout(x, 0.5, KEYS, 3), dropout(x[::-1], 0.5, KEYS[::-1], 3)
    networks.assert_same(moved[::-1], found)
    assert len({np.asarray(row).tobytes() for row in found}) == 8
    assert np.any(found != dropout(x, 0.5, KEYS, 4))


def test_without_keys_nothing_is_dropped():
    x = jax.random.normal(jax.random.key(1), (8, 4, 16))
    networks.assert_same(dropout(x, 0.5, None, 0), x)
    networks.assert_same(dropout(x, 0.0, KEYS, 0), x)


@pytest.mark.parametrize("part", ["embedding", "attn/o", "mlp/down"])
def test_noise_enters_after_the_embedding_and_before_each_residual(part):
    """All that adds to the residual stream but one part is 0, and so is all noise but its own."""
    adds = ("embedding", "attn/o", "mlp/down")

    def only(name, leaf):
        return leaf if part in name or not any(each in name for each in adds) else 0 * leaf

    params = tree.map_named(only, networks.params(SPEC))
    forward = make_forward(SPEC, networks.layout(), jnp.float32)
    run = jax.jit(lambda keys: forward.hidden(params, networks.batch(), keys)[0])
    noisy = np.asarray(run(KEYS))
    assert np.abs(noisy - run(KEYS[::-1])).max() > 0.1
    assert np.abs(noisy - run(None)).max() > 0.1
