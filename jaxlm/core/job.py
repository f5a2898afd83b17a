"""Which processes make one job, and which of them this one is.

Asked in this order, and what the first leaves open the next may fill in: the command line; JAX's
variables, of which jax itself reads the first alone; torchrun's; SkyPilot's; and what jax's own
detection finds of SLURM, Open MPI, Kubernetes and TPU pods.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from jaxlm.core.errors import ClusterError

COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
PORT = 8476
"""Where process 0 listens, of clusters that name no port."""


class Job(NamedTuple):
    """A job of several processes, as one of them sees it."""

    coordinator: str
    """host:port of process 0."""
    processes: int
    process: int
    told_by: str
    """Who said so first."""


class Told(NamedTuple):
    """What one source says as it stands there; "" where it is silent."""

    coordinator: str
    processes: str
    process: str


class Source(NamedTuple):
    """Someone who may know the job, and what the three values are called there."""

    name: str
    called: Told
    ask: Callable[[Mapping[str, str]], Told]


def find(told: Told | None = None, environ: Mapping[str, str] = os.environ) -> Job | None:
    """The job that this process is of; None of one that is alone.

    told: what the command line says. Raises ClusterError for a job that is half described, and for
    numbers that are none.
    """
    known, first = ["", "", ""], None
    for source in _sources(told or Told("", "", "")):
        says = source.ask(environ)
        if any(says):
            first = first or source
            known = [have or new for have, new in zip(known, says, strict=True)]
        if all(known) or known[1] == "1":
            break
    if first is None or (known[1] == "1" and known[2] in ("", "0")):
        return None
    for name, value in zip(first.called, known, strict=True):
        if not value:
            given = next(n for n, v in zip(first.called, known, strict=True) if v)
            raise ClusterError(name, f"is not set, but {given} is; set all three or none")
    processes, process = (
        _whole(name, value) for name, value in zip(first.called[1:], known[1:], strict=True)
    )
    if process >= processes:
        what = f"{process} is not one of {processes} processes; use 0 to {processes - 1}"
        raise ClusterError(first.called.process, what)
    return Job(known[0], processes, process, first.name)


def _sources(told: Told) -> Iterator[Source]:
    line = Told("--coordinator", "--processes", "--process")
    variables = Told(COORDINATOR, PROCESSES, PROCESS)
    yield Source("the command line", line, lambda _: told)
    yield Source("variables of jax", variables, lambda environ: _named(environ, variables))
    yield Source("torchrun", Told("MASTER_ADDR", "WORLD_SIZE", "RANK"), _torchrun)
    sky = Told("SKYPILOT_NODE_IPS", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK")
    yield Source("SkyPilot", sky, lambda environ: _skypilot(environ, sky))
    yield Source("detection by jax", variables, _detected)


def _named(environ: Mapping[str, str], names: Told) -> Told:
    return Told(*(environ.get(name, "") for name in names))


def _torchrun(environ: Mapping[str, str]) -> Told:
    """Its own variables; MASTER_ADDR without a rank is a habit of scripts, and says nothing."""
    if not (environ.get("RANK") and environ.get("WORLD_SIZE")):
        return Told("", "", "")
    address, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", str(PORT))
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and port.isdecimal():
        port = str(int(port) + 1)  # torchrun listens on its own
    return Told(f"{address}:{port}" if address else "", environ["WORLD_SIZE"], environ["RANK"])


def _skypilot(environ: Mapping[str, str], names: Told) -> Told:
    """One process on each node; the addresses stand one on a line."""
    nodes, count, rank = _named(environ, names)
    head = nodes.split()[0] if nodes.split() else ""
    return Told(f"{head}:{PORT}" if head else "", count, rank)


def _detected(environ: Mapping[str, str]) -> Told:
    """What jax finds by itself.

    A shell inside an allocation, and a step of one task, are no jobs of many: SLURM_NTASKS, which
    jax reads, is the allocation's.
    """
    if environ.get("SLURM_JOB_ID") and environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return Told("", "", "")
    from jax._src import clusters  # detection has no door but jax.distributed.initialize

    for kind in clusters.ClusterEnv._cluster_types:
        try:
            if kind.opt_in_only_method or not kind.is_env_present():
                continue
            port = environ.get("JAX_COORDINATOR_PORT")
            address = kind.get_coordinator_address(timeout_secs=60, override_coordinator_port=port)
            return Told(address, str(kind.get_process_count()), str(kind.get_process_id()))
        except Exception as error:  # of a metadata server, or of Kubernetes' API
            what = f"{kind.__name__} is here and does not say the job: {str(error).splitlines()[0]}"
            names = f"{COORDINATOR}, {PROCESSES} and {PROCESS}"
            raise ClusterError("cluster", f"{what}; set {names}") from error
    return Told("", "", "")


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ClusterError(name, f"{text!r} is not a whole number")
    return int(text)
