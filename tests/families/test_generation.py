"""Greedy generation with the cache of keys and values is generation without it, everywhere."""

import jax.numpy as jnp
import networks
import pytest
from families import checks, golden

from jaxlm.inference.generate import Generator
from jaxlm.models.transformer import make_forward

GENERATING = [name for name in golden.NAMES if checks.generates(name)]


@pytest.mark.parametrize("name", GENERATING)
def test_the_cache_changes_no_token(name):
    """Of two prompts in one batch; on ropes that depend on the length see `checks.room`."""
    assert checks.with_cache(name) == checks.without_cache(name)


def test_a_longrope_that_changes_on_the_way_turns_again_what_was_read():
    spec, network = checks.opened("phi3").spec, checks.model("phi3")
    row = golden.inputs("phi3")[0][0]["tokens"][0, : spec.rope.original_length - 3].tolist()
    generator = Generator(make_forward(spec, networks.layout(), jnp.float32), spec)
    found = [int(one[0]) for one in generator.tokens(network.params, [row], max_tokens=8)]
    for token in found:
        assert token == int(network.logits([row])[0, -1].argmax()), len(row)
        row.append(token)


def test_prompts_are_longer_than_every_window():
    for name in GENERATING:
        prompts, count = checks.starts(name)
        assert len(prompts[0]) > checks.opened(name).spec.window.size and count >= 6, name
