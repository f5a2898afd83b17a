"""A trace covers the steps asked for, and is written when the run breaks off too."""

import jax.numpy as jnp
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.observe.profile import Profiler, check_reached


def traces(folder):
    return list(folder.rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", ["3:3", "5:2", "a:b", "7"])
def test_a_range_without_a_step_is_refused(tmp_path, steps):
    with pytest.raises(ConfigError, match="profile.steps: .*10:15"):
        Profiler(steps, tmp_path)


def test_a_range_after_the_last_step_is_refused():
    with pytest.raises(ConfigError, match="profile.steps: 10:15 begins .* run of 10; use 9:10"):
        check_reached("10:15", 10)
    check_reached("9:15", 10)
    check_reached(None, 1)


def test_the_trace_ends_where_asked(tmp_path):
    with Profiler("1:3", tmp_path) as profiler:
        for step in range(5):
            profiler.at(step, wait_for=jnp.ones(4) * step)
            assert bool(traces(tmp_path)) == (step >= 3)
    assert len(traces(tmp_path)) == 1


def test_an_exception_leaves_the_trace_of_what_was_done(tmp_path):
    with pytest.raises(KeyError), Profiler("0:9", tmp_path) as profiler:
        profiler.at(0)
        raise KeyError
    assert len(traces(tmp_path)) == 1


def test_nothing_is_traced_unasked(tmp_path):
    with Profiler(None, tmp_path) as profiler:
        profiler.at(0)
    assert not list(tmp_path.iterdir())
