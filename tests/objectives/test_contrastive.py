"""InfoNCE over the whole batch: what it is, and that parts and devices do not change it."""

from functools import partial

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.core import tree
from jaxlm.models.axes import AXES
from jaxlm.models.embedding import embedding
from jaxlm.models.transformer import make_forward
from jaxlm.objectives.contrastive import contrastive
from jaxlm.training.optim import init_state
from jaxlm.training.step import TrainState, train_step

ROWS, TEXTS, LONG = 8, 3, 5
ENCODER = networks.spec(structure="encoder", layers=1)


def batch(rows=ROWS, seed=0):
    """Examples of three texts of 2 to 5 tokens; the last lacks its negative, and texts repeat."""
    rng = np.random.default_rng(seed)
    shape = (rows, TEXTS * LONG)
    tokens = rng.integers(0, networks.VOCAB, shape).astype(np.int32)
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row in range(rows):
        sizes = rng.integers(2, LONG + 1, TEXTS)
        sizes[2] *= row < rows - 1
        end = sizes.sum()
        segments[row, :end] = np.repeat([1, 2, 3], sizes)
        positions[row, :end] = np.concatenate([np.arange(size) for size in sizes])
    texts = rng.integers(1, 2**31, (rows, 2 * TEXTS)).astype(np.int32)
    texts[2, 2:4] = texts[1, 2:4]  # equal positives
    texts[4, :2] = texts[3, :2]  # equal anchors
    texts[5, 4:] = texts[0, 2:4]  # a negative that is another's positive
    return {"tokens": tokens, "segments": segments, "positions": positions, "texts": texts}


def objective(how="mean", **more):
    given = {"temperature": 0.1, "symmetric": False} | more
    return contrastive(embed=partial(embedding, how=how), **given)


def whole(**more):
    found = objective(**more).whole
    assert found is not None
    return found


def by_hand(found, batch, temperature, symmetric):
    """(losses, ranks) of the rows of float64 embeddings [B, K, D], one loop after the other."""
    count = found.shape[1]
    texts = batch["texts"].reshape(len(found), count, 2).tolist()
    there = [[(row == k + 1).any() for k in range(count)] for row in batch["segments"]]
    losses, ranks = [], []
    for i in range(len(found)):
        if not there[i][0] or not there[i][1]:
            losses.append(0.0)
            ranks.append(None)
            continue
        own = [t[1] for t in texts if t[0] == texts[i][0]]
        right = found[i, 0] @ found[i, 1] / temperature
        others, anchors = [right], [right]
        for j in range(len(found)):
            if not (there[j][0] and there[j][1]):
                continue
            for k in range(1, count):
                known = texts[j][k] == texts[i][0] or texts[j][k] in own
                if there[j][k] and not known:
                    others.append(found[i, 0] @ found[j, k] / temperature)
            theirs = [t[1] for t in texts if t[0] == texts[j][0]]
            if texts[i][1] != texts[j][0] and texts[i][1] not in theirs:
                anchors.append(found[j, 0] @ found[i, 1] / temperature)
        ways = [others, anchors] if symmetric else [others]
        losses.append(np.mean([np.log(np.exp(way).sum()) - right for way in ways]))
        ranks.append(sum(other >= right for other in others))
    return losses, ranks


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_is_that_of_a_plain_formula(symmetric):
    rng, rows = np.random.default_rng(1), batch()
    rows["segments"][6] = 0  # filler
    found = rng.normal(size=(ROWS, TEXTS, 4))
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    compare = whole(symmetric=symmetric).compare
    sums = compare(jnp.asarray(found, jnp.float32), jax.tree.map(jnp.asarray, rows))
    losses, ranks = by_hand(found, rows, 0.1, symmetric)
    np.testing.assert_allclose(sums.loss, losses, rtol=1e-4, atol=1e-5)
    assert sums.weight.tolist() == [float(rank is not None) for rank in ranks]
    assert sums.extra["accuracy"].tolist() == [float(rank == 1) for rank in ranks]
    np.testing.assert_allclose(sums.extra["mrr"], [1 / rank if rank else 0 for rank in ranks])
    assert max(rank for rank in ranks if rank) > 1 and 1 in ranks


def test_embeddings_that_are_all_alike_find_nothing():
    rows = jax.tree.map(jnp.asarray, batch())
    sums = whole().compare(jnp.ones((ROWS, TEXTS, 4)) / 2, rows)
    assert sums.extra["accuracy"].sum() == 0 and (sums.extra["mrr"] < 0.5).all()


def trainer(spec, parts=1, at=None, made=None, trainable=(".",)):
    at = at or networks.layout()
    params = networks.params(spec, at)
    mask = frozenset(n for n in tree.select(params, trainable) if not n.startswith("head/"))
    opt_state = init_state(networks.sgd(), tree.partition(params, mask)[0], at, AXES)
    state = TrainState(jax.device_put(jnp.int32(0), at.sharding(())), params, opt_state)
    step = partial(
        train_step,
        key=networks.ROOT,
        forward=make_forward(spec, at, jnp.float32),
        objective=made or objective(),
        tx=networks.sgd(),
        trainable=mask,
        microbatches=parts,
    )
    return state, jax.jit(step)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_microbatches_do_not_change_the_update(dropout):
    spec = ENCODER.model_copy(update={"dropout": dropout})
    ran = []
    for parts in (1, 4):
        state, step = trainer(spec, parts)
        ran.append(step(state, batch()))
    (one, sums), (four, same) = ran
    networks.assert_close(one.params, four.params)
    networks.assert_close(sums, same)
    assert not np.array_equal(
        one.params["encoder"]["final_norm"]["scale"], state.params["encoder"]["final_norm"]["scale"]
    )


@pytest.mark.parametrize("parts", [1, 2])
def test_eight_devices_compare_all_rows(parts):
    rows = batch(2 * ROWS)
    one, sums = (lambda run: run[1](run[0], rows))(trainer(ENCODER, 1))
    at = networks.layout(data=2, fsdp=2, tensor=2)
    state, step = trainer(ENCODER, parts, at)
    many, same = step(state, networks.placed(rows, at))
    networks.assert_close(one.params, many.params)
    networks.assert_close(sums, same)
