"""What one update must be, whatever the network, the objective and the optimizer are."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from jaxlm.core import tree
from jaxlm.objectives.base import Objective, Sums
from jaxlm.training.step import TrainState, train_step

ADAMW = optax.adamw(1e-2, weight_decay=0.1)


@pytest.fixture(scope="module")
def adamw():
    """A first state that a few steps have been made from, and the step."""
    state, step = networks.trainer(networks.spec(), ADAMW)
    return step(state, networks.batch())[0], step


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_microbatches_do_not_change_the_update(dropout):
    spec, batch = networks.spec(dropout=dropout), networks.batch()
    ran = []
    for parts in (1, 4):
        state, step = networks.trainer(spec, networks.sgd(), microbatches=parts)
        ran.append(step(state, batch))
    (one, sums), (four, same) = ran
    assert float(np.ptp(batch["weights"].reshape(2, 4, -1).sum((0, 2)))) > 1  # uneven parts
    networks.assert_close(one.params, four.params)
    networks.assert_close(sums, same)


def test_dropout_differs_from_row_to_row_and_from_step_to_step():
    spec = networks.spec(dropout=0.5, layers=1)
    state, step = networks.trainer(spec, optax.sgd(0.0))
    alike = {name: np.repeat(array[:1], 8, axis=0) for name, array in networks.batch().items()}
    losses = []
    for _ in range(2):
        state, sums = step(state, alike)
        losses.append(float(sums["loss"]))
    assert losses[0] != losses[1]
    again = networks.trainer(spec, optax.sgd(0.0))[0]
    assert float(step(again, alike)[1]["loss"]) == losses[0]
    doubled = {k: v * (np.arange(8) < 1)[:, None].astype(v.dtype) for k, v in alike.items()}
    assert float(step(again, doubled)[1]["loss"]) * 8 != pytest.approx(losses[0], rel=1e-3)


def test_frozen_leaves_stay_as_they_are():
    trainable = ["attn/(q|v)/kernel", "final_norm"]
    state, step = networks.trainer(networks.spec(), ADAMW, trainable=trainable)
    mask, before = tree.select(state.params, trainable), state.params
    for _ in range(3):
        state, _ = step(state, networks.batch())
    (live, frozen), (old, held) = (tree.partition(p, mask) for p in (state.params, before))
    networks.assert_same(frozen, held)
    moved = {name: np.any(x != tree.flatten(old)[name]) for name, x in tree.flatten(live).items()}
    assert moved == dict.fromkeys(mask, True)
    assert tree.nbytes(state.opt_state) == 2 * tree.nbytes(live) + 4  # two moments and a count


def test_the_gradient_norm_is_that_of_what_is_trained():
    """Plain gradient descent moves by the rate times the gradient."""
    state, step = networks.trainer(
        networks.spec(), networks.sgd(), trainable=["final_norm", "attn"]
    )
    after, sums = step(state, networks.batch())
    moved = jax.tree.map(jnp.subtract, state.params, after.params)
    assert float(sums["grad_norm"]) == pytest.approx(float(optax.tree.norm(moved)) / 0.1, rel=1e-4)


@pytest.mark.parametrize("broken", ["weights", "embedding"])
def test_a_step_without_a_finite_gradient_changes_nothing_but_its_number(adamw, broken):
    (state, step), batch = adamw, networks.batch()
    if broken == "weights":
        batch["weights"][3, 2] = np.inf
    else:
        row = state.params["embed"]["embedding"].at[int(batch["tokens"][0, 0])].set(np.inf)
        params = {**state.params, "embed": {"embedding": row}}
        state = TrainState(state.step, params, state.opt_state)
    after, sums = step(state, batch)
    assert int(sums["skipped"]) == 1 and int(after.step) == int(state.step) + 1
    networks.assert_same(after.params, state.params)
    networks.assert_same(after.opt_state, state.opt_state)
    assert int(optax.tree.get(after.opt_state, "count")) == 1


def test_the_step_after_a_skipped_one_is_the_one_that_would_have_been(adamw):
    state, step = adamw
    bad = networks.batch()
    bad["weights"][0, 0] = np.nan
    straight, sums = step(state, networks.batch())
    resumed, _ = step(step(state, bad)[0], networks.batch())
    networks.assert_same(resumed.params, straight.params)
    assert int(sums["skipped"]) == 0 and int(optax.tree.get(resumed.opt_state, "count")) == 2


def test_the_update_is_divided_by_the_weight_of_the_whole_batch():
    """The loss is weight x parameter here: its gradient is sum(weight) / sum(weight) = 1."""

    def weighted(forward, params, batch, keys):
        weight = batch["weights"].sum()
        return Sums((batch["weights"] * params["a"]).sum(), weight, {}, {})

    for parts in (1, 2):
        for scale in (1.0, 100.0, 0.001):  # also weights that add up to less than 1
            batch = {k: v * np.float32(scale) for k, v in networks.batch().items()}
            state = TrainState(jnp.int32(0), {"a": jnp.float32(2.0)}, networks.sgd().init(0))
            after, sums = train_step(
                state,
                batch,
                networks.ROOT,
                forward=None,
                objective=Objective(weighted, scores=lambda *_: {}),
                tx=networks.sgd(),
                trainable=frozenset({"a"}),
                microbatches=parts,
            )
            assert float(after.params["a"]) == pytest.approx(2.0 - 0.1)
            assert float(sums["grad_norm"]) == pytest.approx(1.0)


def test_a_batch_of_filler_moves_nothing_but_by_decay_and_momentum(adamw):
    """Its gradient is 0: an update like any other, so AdamW still decays and coasts."""
    state, step = networks.trainer(networks.spec(), ADAMW)
    filler = networks.batch()
    filler["weights"] *= 0
    after, sums = step(state, filler)
    assert all(np.isfinite(x) for x in jax.tree.leaves(sums))
    assert (int(sums["skipped"]), float(sums["weight"]), float(sums["grad_norm"])) == (0, 0.0, 0.0)
    networks.assert_close(after.params, jax.tree.map(lambda p: p * (1 - 1e-3), state.params))


def test_every_metric_is_a_scalar_that_adds(adamw):
    state, step = adamw
    _, sums = step(state, networks.batch())
    batch = networks.batch()
    assert sums.keys() == {
        *("loss", "weight", "z_loss", "accuracy", "tokens", "grad_norm", "skipped")
    }
    assert float(sums["weight"]) == pytest.approx(float(batch["weights"].sum()))
    assert int(sums["tokens"]) == (batch["segments"] > 0).sum()
    assert all(np.shape(x) == () for x in sums.values())
