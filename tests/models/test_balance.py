"""What routers add to a loss, against transformers' formula in plain numpy."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.models import balance
from jaxlm.models.transformer import make_forward
from jaxlm.objectives.lm import language_model

LAYERS, ROWS, LENGTH, COUNT = 3, 2, 5, 4
RNG = np.random.default_rng(0)
SCORES = 2 * RNG.normal(size=(LAYERS, ROWS, LENGTH, COUNT)).astype(np.float32)
SEGMENTS = np.array([[1, 1, 2, 2, 0], [1, 1, 1, 0, 0]], np.int32)
SPARSE = networks.spec(
    layers=1, experts={"count": COUNT}, balance_loss=0.02, router_z_loss=0.003, tied=False
)


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def by_hand(scores, chosen, segments):
    """load_balancing_loss_func of transformers, of all layers' tokens one after the other."""
    scores, real = scores.reshape(-1, COUNT), np.tile((segments > 0).reshape(-1), LAYERS)
    share = softmax(scores)
    best = np.argsort(-share, -1)[:, :chosen]
    mask = np.eye(COUNT)[best]  # [tokens, chosen, COUNT]
    per_expert = mask[real].mean(0)
    return COUNT * (per_expert * share[real].mean(0)[None]).sum()


def found(scores, chosen, segments):
    def layer(scores):
        share = jax.nn.softmax(scores, -1)
        return balance.routed(scores, share, jax.lax.top_k(share, chosen)[1], segments)

    return jax.vmap(layer)(jnp.asarray(scores))


@pytest.mark.parametrize("chosen", [1, 2, COUNT])
@pytest.mark.parametrize("segments", [SEGMENTS, None], ids=["padded", "full"])
def test_the_balance_is_that_of_transformers(chosen, segments):
    whole = np.ones((ROWS, LENGTH)) if segments is None else segments
    ours = balance.balance_loss(found(SCORES, chosen, segments))
    np.testing.assert_allclose(ours, by_hand(SCORES, chosen, whole), rtol=1e-6)


def test_the_z_loss_is_a_mean_of_squared_denominators():
    """ST-MoE, equation 5."""
    squares = np.log(np.exp(SCORES.astype(np.float64)).sum(-1)) ** 2
    expected = squares[:, SEGMENTS > 0].mean()
    np.testing.assert_allclose(balance.z_loss(found(SCORES, 2, SEGMENTS)), expected, rtol=1e-6)


def test_even_routing_is_the_least_and_has_a_load_of_one():
    """Each token chooses another of the experts, and no expert more often than another."""
    turns = 3.0 * np.stack([np.roll(np.eye(COUNT), i, 0) for i in range(2)])[None]
    even = found(turns.astype(np.float32), 1, None)
    np.testing.assert_allclose(balance.balance_loss(even), 1, rtol=1e-6)
    spec = SPARSE.model_copy(update={"balance_loss": 0.5})
    aux = balance.auxiliary(spec, even)
    assert aux.figures["expert_load"] == 1 and aux.loss["balance_loss"] == 0.5
    one = found(np.broadcast_to(3 * np.eye(COUNT)[0], turns.shape).astype(np.float32), 1, None)
    assert balance.balance_loss(one) > 3
    np.testing.assert_allclose(balance.auxiliary(spec, one).figures["expert_load"], COUNT)


def sums(spec, batch):
    forward = make_forward(spec, networks.layout(), jnp.float32)
    objective = language_model(z_loss=0.0, shards=1)
    return objective.loss(forward, networks.params(spec), batch, None)


def test_terms_of_routers_are_means_of_the_batch_times_its_weight():
    """Whatever is weighted: an answer of few tokens does not make the term more than it is."""
    batch = networks.batch()
    one, other = (sums(SPARSE, batch | {"weights": w * batch["weights"]}) for w in (1.0, 0.25))
    for name in ("balance_loss", "router_z_loss"):
        term = one.auxiliary[name] / one.weight
        np.testing.assert_allclose(other.auxiliary[name] / other.weight, term, rtol=1e-6)
        assert term > 0
    mean = one.auxiliary["balance_loss"] / one.weight
    assert SPARSE.balance_loss * SPARSE.experts.chosen <= mean < SPARSE.balance_loss * COUNT


def test_each_microbatch_has_terms_of_its_own():
    batch = networks.batch()
    halves = [{k: x[i::2] for k, x in batch.items()} for i in (0, 1)]  # as the step cuts it
    parts = [sums(SPARSE, half).auxiliary for half in halves]
    state, step = networks.trainer(SPARSE, networks.sgd(), microbatches=2)
    _, metrics = step(state, batch)
    for name in ("balance_loss", "router_z_loss"):
        np.testing.assert_allclose(metrics[name], sum(p[name] for p in parts), rtol=1e-5)


def test_their_gradient_reaches_the_router_alone_of_the_experts():
    plain = SPARSE.model_copy(update={"balance_loss": 0.0, "router_z_loss": 0.0})

    def gradient(spec):
        def total(params):
            forward = make_forward(spec, networks.layout(), jnp.float32)
            _, aux = forward.hidden(params, networks.batch(), None)
            return sum(aux.loss.values(), jnp.float32(0))

        return jax.jit(jax.grad(total))(networks.params(spec))["decoder"]["blocks"]["experts"]

    with_terms, without = gradient(SPARSE), gradient(plain)
    assert np.abs(with_terms["router"]["kernel"]).max() > 0
    assert not np.any(without["router"]["kernel"]) and not np.any(with_terms["up"]["kernel"])
