"""A job that is half described or out of reach is one line, not an abort in C++."""

import os
import subprocess
import sys

import pytest

from jaxlm.core import distributed
from jaxlm.core.errors import ClusterError
from jaxlm.core.job import COORDINATOR, PROCESS, PROCESSES

NAMES = (COORDINATOR, PROCESSES, PROCESS)


@pytest.fixture
def job(monkeypatch):
    def describe(*values):
        for name, value in zip(NAMES, values, strict=True):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return describe


def test_alone_without_the_variables(job):
    job(None, None, None)
    distributed.initialize()
    assert (distributed.index(), distributed.count()) == (0, 1)
    assert distributed.gather("x", "mine") == ["mine"]
    assert distributed.agree("x", lambda: 3) == distributed.together("x", lambda: 3) == 3
    distributed.compare("x", {"seed": 1})


@pytest.mark.parametrize(
    "values, message",
    [
        (("127.0.0.1", "2", "0"), "'127.0.0.1' is not host:port"),
        (("127.0.0.1:99999", "2", "0"), "is not host:port"),
        (("no.such.host.invalid:1", "2", "0"), "'no.such.host.invalid' does not resolve"),
        (("192.0.2.1:8476", "2", "0"), "cannot listen on 192.0.2.1:8476"),
    ],
)
def test_a_wrong_description(job, values, message):
    job(*values)
    with pytest.raises(ClusterError) as caught:
        distributed.initialize(timeout=1)
    assert message in str(caught.value) and caught.value.code == 6


@pytest.mark.parametrize(
    "facts, message",
    [
        ([{"jax": "1"}, {"jax": "1"}], None),
        (
            [{"jax": "1"}, {"jax": "2"}],
            "process 1 (b): has another jax than process 0 (a): 2, not 1",
        ),
        (
            [{"jax": "2"}, {"jax": "1"}, {"jax": "1"}],
            "process 0 (a): has another jax than the other 2: 2, not 1",
        ),
        (
            [{"seed": 0}, {"seed": 1}, {"seed": 0}, {"seed": 2}, {"seed": 0}],
            "process 1 (b) and 1 more: has another seed than the other 3: 1, not 0",
        ),
        ([{"data": "x" * 99}, {"data": "y" * 99}, {"data": "x" * 99}], "another data than the"),
    ],
)
def test_the_one_that_differs_is_named(facts, message):
    names = list("abcde"[: len(facts)])
    if message is None:
        distributed.check_same(names, facts)
        return
    with pytest.raises(ClusterError) as caught:
        distributed.check_same(names, facts)
    assert message in str(caught.value) and len(str(caught.value)) < 180


def test_leaving_at_once_flushes_and_runs_no_exit_hooks():
    code = (
        "import atexit, sys; from jaxlm.core import distributed;"
        "atexit.register(print, 'hook'); sys.stdout.write('out'); sys.stderr.write('err');"
        "distributed.exit_now(17)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ
    )
    assert (done.returncode, done.stdout, done.stderr) == (17, "out", "err")


def test_hosts_that_know_nothing_of_each_other_are_refused(monkeypatch):
    """As on a TPU pod without the variables: there is none here, so jax's answer stands in."""
    distributed.check_complete()
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 4)
    with pytest.raises(
        ClusterError, match="^JAX_NUM_PROCESSES: .* belong to 4; in each process set"
    ):
        distributed.check_complete()
