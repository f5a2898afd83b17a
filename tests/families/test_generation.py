"""Greedy generation with the cache of keys and values is generation without it, everywhere."""

import pytest
from families import checks, golden

GENERATING = [name for name in golden.NAMES if checks.generates(name)]


@pytest.mark.parametrize("name", GENERATING)
def test_the_cache_changes_no_token(name):
    """Of two prompts in one batch; on ropes that depend on the length see `checks.room`."""
    assert checks.with_cache(name) == checks.without_cache(name)


def test_prompts_are_longer_than_every_window():
    for name in GENERATING:
        prompts, count = checks.starts(name)
        assert len(prompts[0]) > checks.opened(name).spec.window.size and count >= 6, name
