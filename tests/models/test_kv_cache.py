"""Generation sees what training saw: decoding with the cache gives the logits of the full pass."""

from functools import cache

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.models.cache import empty_cache
from jaxlm.models.transformer import make_forward

SPECS = {name: networks.spec(**changes) for name, changes in networks.SHAPES.items()}
ROWS, LENGTH = 3, 13
TOKENS = np.random.default_rng(0).integers(0, networks.VOCAB, (ROWS, LENGTH)).astype(np.int32)


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


@cache
def functions(spec, **mesh):
    """(parameters, decode, the logits of whole rows [B, L] -> [B, L, V])."""
    at = networks.layout(**mesh)
    forward, params = make_forward(spec, at, jnp.float32), networks.params(spec, at)

    def logits(tokens):
        at = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        x, _ = forward.hidden(params, {"tokens": tokens, "positions": at}, None)
        return forward.logits(forward.head(params), x)[..., : spec.vocab]

    return params, jax.jit(forward.decode), jax.jit(logits)


def fresh(spec, rows=ROWS, size=LENGTH + 2):
    return empty_cache(spec.layers, rows, size, spec.kv_heads, spec.head_dim, jnp.float32)


def close(found, right):
    np.testing.assert_allclose(found, right, atol=1e-5 * np.abs(right).max())


def test_token_by_token_gives_the_logits_of_the_whole(spec):
    params, decode, logits = functions(spec)
    right, cache = np.asarray(logits(TOKENS)), fresh(spec)
    for i in range(LENGTH):
        found, cache = decode(params, TOKENS[:, i : i + 1], cache)
        close(found, right[:, i])


def test_a_prompt_at_once_and_then_tokens_give_the_logits_of_the_whole(spec):
    params, decode, logits = functions(spec)
    right = np.asarray(logits(TOKENS))
    found, cache = decode(params, TOKENS[:, :9], fresh(spec))
    close(found, right[:, 8])
    for i in range(9, LENGTH):
        found, cache = decode(params, TOKENS[:, i : i + 1], cache)
        close(found, right[:, i])


def test_padding_on_the_left_changes_no_row(spec):
    """Prompts of 9, 4 and 1 tokens end together, and tokens follow."""
    params, decode, logits = functions(spec)
    right, lengths = np.asarray(logits(TOKENS)), np.array([9, 4, 1])
    prompt, real = np.full((ROWS, 9), 5, np.int32), np.zeros((ROWS, 9), bool)
    for row, n in enumerate(lengths):
        prompt[row, 9 - n :], real[row, 9 - n :] = TOKENS[row, :n], True
    found, cache = decode(params, prompt, fresh(spec)._replace(incoming=real))
    for i in range(4):
        close(found, right[np.arange(ROWS), lengths - 1 + i])
        found, cache = decode(params, TOKENS[np.arange(ROWS), lengths + i][:, None], cache)


def test_a_mesh_decodes_as_one_device(spec):
    params, decode, _ = functions(spec, data=2, fsdp=2, tensor=2)
    right = np.asarray(functions(spec)[2](TOKENS))
    found, cache = decode(params, TOKENS[:, :9], fresh(spec))
    close(found, right[:, 8])
    close(decode(params, TOKENS[:, 9:10], cache)[0], right[:, 9])
