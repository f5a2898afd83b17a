"""What must hold of decoders whose prompts are seen from both sides (prefix LM)."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from pydantic import ValidationError

from jaxlm.core.errors import CheckpointError
from jaxlm.families import fitting
from jaxlm.models.backends import BACKENDS, attention
from jaxlm.models.cache import empty_cache
from jaxlm.models.scores import Scores
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import make_forward

SPECS = {
    "rope": networks.spec(prefix=True),
    "relative": networks.spec(
        prefix=True, positions="relative", relative={"buckets": 8, "distance": 12}
    ),
}


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


def batch(prompt=6, **choices):
    """Rows whose segments begin with a prompt."""
    rows = networks.batch(**choices)
    return {**rows, "prefix": (rows["positions"] < prompt) & (rows["segments"] > 0)}


def change(spec, rows, at):
    """How far each position's logits move [L] when the token `at` is another."""
    moved = {**rows, "tokens": rows["tokens"].copy()}
    moved["tokens"][:, at] = (moved["tokens"][:, at] + 1) % networks.VOCAB
    logits = functions(spec)[1]
    return np.abs(logits(moved) - logits(rows)).max((0, 2))


def test_a_prompt_sees_all_of_itself_and_the_rest_its_past(spec):
    rows = batch(packed=False)
    assert change(spec, rows, 5).min() > 1e-5
    later = change(spec, rows, 9)
    assert later[:9].max() == 0 and later[9:].min() > 1e-5
    whole = change(spec, batch(99, packed=False), networks.LENGTH - 1)
    assert whole.min() > 1e-5


def test_without_a_prompt_it_is_a_causal_decoder_and_another_does_not_read_it():
    plain, rows = networks.spec(), batch()
    bare = {name: x for name, x in rows.items() if name != "prefix"}
    right = functions(plain)[1](bare)
    assert np.array_equal(functions(plain)[1](rows), right)
    assert np.array_equal(functions(SPECS["rope"])[1](bare), right)


def test_packed_is_as_alone(spec):
    rows, logits = batch(prompt=2), functions(spec)[1]
    found = np.asarray(logits(rows))
    for which in (1, 2):
        for i, segments in enumerate(rows["segments"]):
            here = np.flatnonzero(segments == which)
            places = np.resize(here, networks.LENGTH)
            alone = {name: x[i : i + 1, places] for name, x in rows.items()}
            alone["segments"] = (np.arange(networks.LENGTH) < len(here))[None].astype(np.int32)
            right = logits(alone)[0, : len(here)]
            np.testing.assert_allclose(found[i, here], right, atol=2e-5)


def test_what_is_generated_with_the_cache_is_as_without(spec):
    rows, (params, logits, decode) = batch(packed=False), functions(spec)
    right = np.asarray(logits(rows))
    size = networks.LENGTH + 3
    store = empty_cache(spec.layers, networks.ROWS, size, spec.kv_heads, spec.head_dim, jnp.float32)
    ahead = np.pad(rows["tokens"][:, :6], ((0, 0), (3, 0)))  # prompts stand at the right
    store = store._replace(incoming=jnp.asarray(np.arange(9) >= 3)[None].repeat(networks.ROWS, 0))
    found, store = decode(params, ahead, store)
    np.testing.assert_allclose(found, right[:, 5], atol=2e-5)
    for i in range(6, 10):
        found, store = decode(params, rows["tokens"][:, i : i + 1], store)
        np.testing.assert_allclose(found, right[:, i], atol=2e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_blocks_and_a_mesh_compute_what_is_defined(packed):
    rng, length = np.random.default_rng(0), 300
    q, k, v, dy = (
        rng.normal(size=(2, length, heads, 8)).astype(np.float32) for heads in (4, 4, 4, 4)
    )
    segments = np.sort(np.arange(2 * length).reshape(2, length) % 3) if packed else None
    begins = np.diff(segments, prepend=-1) > 0 if packed else np.arange(length)[None] == 0
    start = np.maximum.accumulate(np.where(begins, np.arange(length), 0), axis=1)
    prefix = np.broadcast_to(np.arange(length) - start < 70, (2, length))
    places = np.arange(length)
    may = (places[:, None] >= places) | prefix[:, None] & prefix[:, :, None]
    may &= True if segments is None else segments[:, None] == segments[:, :, None]

    def by_pairs(q, k, v):
        scores = jnp.where(may[:, None], jnp.einsum("blnh,bsnh->bnls", q, k) * 0.5, -jnp.inf)
        return jnp.einsum("bnls,bsnh->blnh", jax.nn.softmax(scores), v)

    more = {"segments": segments, "how": Scores(0.5), "prefix": prefix}
    mesh = partial(attention, layout=networks.layout(fsdp=2, tensor=4), **more)
    backends = [partial(BACKENDS[name], **more) for name in ("full", "chunked")]
    found = []
    for attend in (by_pairs, *backends, mesh):
        y, pullback = jax.vjp(jax.jit(attend), q, k, v)
        found.append([y, *pullback(dy)])
    for each in found[1:]:
        for x, y in zip(each, found[0], strict=True):
            assert np.abs(x - y).max() <= 1e-5 * np.abs(y).max()


def test_a_mesh_changes_no_logit(spec):
    mesh = {"fsdp": 4, "tensor": 2}
    found = functions(spec, **mesh)[1](networks.placed(batch(), networks.layout(**mesh)))
    np.testing.assert_allclose(found, functions(spec)[1](batch()), atol=5e-5)


@pytest.mark.parametrize(
    "changes",
    [{"structure": "encoder"}, {"window": {"size": 4}}, {"structure": "encoder-decoder"}],
)
def test_what_has_no_prompt_or_cannot_see_all_of_it_is_refused(changes):
    with pytest.raises(ValidationError, match="prefix is of a decoder without window"):
        ModelSpec.model_validate({"prefix": True, **changes})


def test_no_export_forgets_it():
    with pytest.raises(CheckpointError, match=r"^export: no family .* model.prefix=True [^\n]*$"):
        fitting(SPECS["rope"])
