"""A job that is half described or out of reach is one line, not an abort in C++."""

import os
import socket
import subprocess
import sys

import pytest

from jaxlm.core import distributed
from jaxlm.core.errors import ClusterError

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


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


@pytest.mark.parametrize(
    "values, message",
    [
        (("127.0.0.1:1", None, "0"), "JAX_NUM_PROCESSES: is not set, but JAX_COORDINATOR_ADDRESS"),
        ((None, "2", None), "JAX_COORDINATOR_ADDRESS: is not set, but JAX_NUM_PROCESSES"),
        (("127.0.0.1:1", "two", "0"), "JAX_NUM_PROCESSES: 'two' is not a whole number"),
        (("127.0.0.1:1", "2", "2"), "JAX_PROCESS_ID: 2 is not one of 2 processes; use 0 to 1"),
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


def test_a_port_that_is_taken_and_a_coordinator_that_is_not_there(job):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        job(address, "2", "1")
        with pytest.raises(ClusterError, match=f"nobody answers at {address} after 0.3 s"):
            distributed.initialize(timeout=0.3)
        taken.listen()
        job(address, "2", "0")
        with pytest.raises(ClusterError, match=f"cannot listen on {address}"):
            distributed.initialize()


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
