"""Which job a process is of: whoever says it first, and what the others fill in."""

import pytest

from jaxlm.core.errors import ClusterError
from jaxlm.core.job import COORDINATOR, PROCESS, PROCESSES, Job, Told, find

NOTHING = Told("", "", "")
JAX = {COORDINATOR: "10.0.0.1:9000", PROCESSES: "4", PROCESS: "2"}
TORCHRUN = {"MASTER_ADDR": "10.0.0.2", "MASTER_PORT": "29500", "WORLD_SIZE": "8", "RANK": "3"}
SKY = {
    "SKYPILOT_NODE_IPS": "10.0.0.3\n10.0.0.4",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
}
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-09]",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
ALL = SLURM | SKY | TORCHRUN | JAX


@pytest.fixture
def detect(monkeypatch):
    """`find`, with an environment that jax's own detection sees too."""

    def found(environ, told=NOTHING):
        for name in ALL:
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return find(told, environ)

    return found


@pytest.mark.parametrize(
    "environ, job",
    [
        ({}, None),
        (JAX, Job("10.0.0.1:9000", 4, 2, "variables of jax")),
        (TORCHRUN, Job("10.0.0.2:29500", 8, 3, "torchrun")),
        (
            TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"},
            Job("10.0.0.2:29501", 8, 3, "torchrun"),
        ),
        (SKY, Job("10.0.0.3:8476", 2, 1, "SkyPilot")),
        (SLURM, Job(f"node07:{4097 % 4096 + 65535 - 4096 + 1}", 6, 5, "detection by jax")),
        (SLURM | {"JAX_COORDINATOR_PORT": "1234"}, Job("node07:1234", 6, 5, "detection by jax")),
        (ALL, Job("10.0.0.1:9000", 4, 2, "variables of jax")),
        (SLURM | SKY | TORCHRUN, Job("10.0.0.2:29500", 8, 3, "torchrun")),
        (SLURM | SKY, Job("10.0.0.3:8476", 2, 1, "SkyPilot")),
    ],
)
def test_the_first_that_speaks_is_heard(detect, environ, job):
    assert detect(environ) == job


def test_the_command_line_comes_before_all():
    told = Told("here:1", "2", "1")
    assert find(told, ALL) == Job("here:1", 2, 1, "the command line")
    assert find(Told("", "1", ""), ALL) is None  # alone, whatever surrounds it


def test_what_one_leaves_open_the_next_fills_in(detect):
    environ = SLURM | {COORDINATOR: "ib-node07:7000"}
    assert detect(environ) == Job("ib-node07:7000", 6, 5, "variables of jax")


@pytest.mark.parametrize(
    "environ",
    [
        {"MASTER_ADDR": "10.0.0.2", "MASTER_PORT": "29500"},  # a habit of scripts
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},  # a shell inside an allocation of six
        {k: v for k, v in SLURM.items() if "STEP" not in k},  # the batch script itself
        JAX | {PROCESSES: "1", PROCESS: "0"},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
    ],
)
def test_alone_is_alone(detect, environ):
    assert detect(environ) is None


@pytest.mark.parametrize(
    "environ, told, message",
    [
        (
            {COORDINATOR: "a:1", PROCESS: "0"},
            NOTHING,
            f"{PROCESSES}: is not set, but {COORDINATOR}",
        ),
        ({PROCESSES: "2"}, NOTHING, f"{COORDINATOR}: is not set, but {PROCESSES} is"),
        (JAX | {PROCESSES: "two"}, NOTHING, f"{PROCESSES}: 'two' is not a whole number"),
        (JAX | {PROCESS: "4"}, NOTHING, f"{PROCESS}: 4 is not one of 4 processes; use 0 to 3"),
        ({}, Told("", "2", "0"), "--coordinator: is not set, but --processes is"),
        ({}, Told("a:1", "2", "-1"), "--process: '-1' is not a whole number"),
    ],
)
def test_half_a_description_is_refused(environ, told, message):
    with pytest.raises(ClusterError, match=f"^{message}"):
        find(told, environ)
