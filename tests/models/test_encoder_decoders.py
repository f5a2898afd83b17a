"""What must hold of an encoder-decoder whatever its weights are."""

from functools import cache

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.models.cache import empty_cache
from jaxlm.models.relative import buckets
from jaxlm.models.transformer import make_forward

SPECS = {name: networks.spec(**changes) for name, changes in networks.PAIRS.items()}
WIDTH = 11


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


@cache
def functions(spec, **mesh):
    """(parameters, batch -> logits [B, L, V], decode)."""
    at = networks.layout(**mesh)
    forward, params = make_forward(spec, at, jnp.float32), networks.params(spec, at)

    def logits(batch):
        x, _ = forward.hidden(params, batch, None)
        return forward.logits(forward.head(params), x)[..., : spec.vocab]

    return params, jax.jit(logits), jax.jit(forward.decode)


def pairs(rows=networks.ROWS):
    """Targets, and sources of different lengths, padded."""
    rng, at = np.random.default_rng(3), np.arange(WIDTH)[None]
    batch = networks.batch(rows, packed=False)
    real = at < rng.integers(4, WIDTH, (rows, 1))
    return {
        **batch,
        "source": (rng.integers(0, networks.VOCAB, real.shape) * real).astype(np.int32),
        "source_positions": (at * real).astype(np.int32),
        "source_segments": real.astype(np.int32),
    }


def change(spec, batch, name, row, at):
    """How far each row's logits move [B, L] when a token is another."""
    moved = {**batch, name: batch[name].copy()}
    moved[name][row, at] = (moved[name][row, at] + 1) % networks.VOCAB
    logits = functions(spec)[1]
    return np.abs(logits(moved) - logits(batch)).max(-1)


def test_a_target_sees_its_past_and_all_of_its_source(spec):
    batch = pairs()
    target = change(spec, batch, "tokens", slice(None), 6)
    assert target[:, :6].max() == 0 and target[:, 6:].min() > 1e-5
    source = change(spec, batch, "source", 2, 3)
    assert source[2].min() > 1e-5 and np.delete(source, 2, axis=0).max() == 0


def test_padding_of_a_source_is_not_seen(spec):
    batch, logits = pairs(), functions(spec)[1]
    filled = {**batch, "source": np.where(batch["source_segments"], batch["source"], 5)}
    assert np.array_equal(logits(filled), logits(batch))
    cut = {name: x[:1, :9] if name.startswith("source") else x[:1] for name, x in batch.items()}
    if batch["source_segments"][0].sum() <= 9:
        np.testing.assert_allclose(logits(cut), logits(batch)[:1], atol=2e-5)


def test_packed_pairs_are_as_they_are_alone(spec):
    one, two = ({k: v[i : i + 1] for k, v in pairs(2).items()} for i in range(2))
    short = {k: v[:, :7] for k, v in one.items()}, {k: v[:, :8] for k, v in two.items()}
    for pair in short:
        pair["source_segments"] = np.ones_like(pair["source"])
        pair["source_positions"] = np.arange(pair["source"].shape[1], dtype=np.int32)[None]
    marked = [
        {k: v * (i + 1) if k.endswith("segments") else v for k, v in pair.items()}
        for i, pair in enumerate(short)
    ]
    together = {k: np.concatenate([pair[k] for pair in marked], axis=1) for k in marked[0]}
    logits = functions(spec)[1]
    found = np.asarray(logits(together))
    np.testing.assert_allclose(found[:, :7], logits(short[0]), atol=2e-5)
    np.testing.assert_allclose(found[:, 7:], logits(short[1]), atol=2e-5)


def test_token_by_token_gives_the_logits_of_the_whole(spec):
    batch, (params, logits, decode) = pairs(), functions(spec)
    del batch["segments"]
    right = np.asarray(logits(batch))
    source = {name: x for name, x in batch.items() if name.startswith("source")}
    size = networks.LENGTH + 3
    cache = empty_cache(spec.layers, networks.ROWS, size, spec.kv_heads, spec.head_dim, jnp.float32)
    found, cache = decode(params, batch["tokens"][:, :4], cache, source)
    np.testing.assert_allclose(found, right[:, 3], atol=2e-5)
    for i in range(4, networks.LENGTH):
        found, cache = decode(params, batch["tokens"][:, i : i + 1], cache)
        np.testing.assert_allclose(found, right[:, i], atol=2e-5)


def test_a_mesh_computes_the_same(spec):
    mesh = {"fsdp": 4, "tensor": 2}
    found = functions(spec, **mesh)[1](networks.placed(pairs(), networks.layout(**mesh)))
    np.testing.assert_allclose(found, functions(spec)[1](pairs()), atol=5e-5)


def test_every_parameter_learns(spec):
    forward, batch = make_forward(spec, networks.layout(), jnp.float32), pairs()

    def loss(params):
        x, _ = forward.hidden(params, batch, None)
        return (forward.logits(forward.head(params), x)[..., : spec.vocab] ** 2).mean()

    for slope in jax.tree.leaves(jax.grad(loss)(networks.params(spec))):
        assert np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_dropout_of_the_stacks_is_their_own(spec):
    noisy = spec.model_copy(update={"dropout": 0.5})
    forward, params = make_forward(noisy, networks.layout(), jnp.float32), networks.params(spec)
    keys = jax.random.split(networks.ROOT, networks.ROWS)
    run = jax.jit(lambda keys: forward.hidden(params, pairs(), keys)[0])
    assert np.array_equal(run(keys), run(keys))
    assert np.abs(run(keys) - run(keys[::-1])).max() > 0.1


@pytest.mark.parametrize("causal", [True, False])
def test_near_distances_have_a_bucket_each_and_far_ones_share_the_last(causal):
    at = np.arange(-400, 401)
    found = dict(zip(at.tolist(), buckets(at, causal, 32, 128).tolist(), strict=True))
    width = 32 if causal else 16
    assert [found[-d] for d in range(width // 2)] == list(range(width // 2))
    assert found[-128] == found[-400] == width - 1 > found[-64]
    left = [found[-d] for d in range(401)]
    assert left == sorted(left) and set(left) == set(range(width))
    if causal:
        assert {found[d] for d in range(401)} == {0}
    else:
        assert [found[d] for d in range(1, 401)] == [16 + b for b in left[1:]]
