"""Several processes as one program: start, agree, and leave without waiting for the others.

Messages go through the coordination service's key-value store, not through device collectives, so
that a background thread may send one while a step runs.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
from jax._src import distributed  # the key-value store has no public door

from jaxlm.core.errors import ClusterError, JaxlmError

T = TypeVar("T")

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_HEARTBEAT = 60  # seconds after which a silent process is taken for dead; jax's default is 100
_SHUTDOWN = 15  # seconds an ending process waits for the others; jax's default is 300
_PATIENCE = 7 * 86400.0  # seconds a live process may prepare; a dead one ends all by its heartbeat
_GRACE = 1.5  # seconds that process 0 gives the others to leave by themselves
_calls: dict[str, int] = {}  # how many gathers of each name this process has started
_calls_lock = threading.Lock()


def initialize(timeout: float = 300.0) -> None:
    """Join the processes that the environment names; nothing without its variables.

    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Call it
    before anything touches a device. The coordinator listens on the interface of its address alone,
    because its port is neither encrypted nor authenticated. timeout: seconds to wait for it.
    Raises ClusterError for variables that are missing or wrong, a coordinator that does not answer,
    or a port that is taken (jax itself aborts the process in both cases).
    """
    given = [name for name in (_ADDRESS, _COUNT, _INDEX) if os.environ.get(name)]
    if not given or distributed.global_state.client is not None:
        return
    for name in (_ADDRESS, _COUNT, _INDEX):
        if name not in given:
            raise ClusterError(name, f"is not set, but {given[0]} is; set all three or none")
    count, index = _whole(_COUNT), _whole(_INDEX)
    if not 0 <= index < count:
        raise ClusterError(_INDEX, f"{index} is not one of {count} processes; use 0 to {count - 1}")
    address = os.environ[_ADDRESS]
    host, port = _resolve(address)
    if index == 0:
        _check_bind(address, host, port)
    else:
        _await_coordinator(address, host, port, timeout)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        count,
        index,
        initialization_timeout=max(1, round(timeout)),
        coordinator_bind_address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=_SHUTDOWN,
    )


def index() -> int:
    """The number of this process, from 0, without touching a device."""
    return distributed.global_state.process_id or 0


def count() -> int:
    """How many processes there are, without touching a device."""
    return distributed.global_state.num_processes or 1


def check_complete() -> None:
    """Raise ClusterError where processes that know nothing of each other share the devices.

    A TPU pod knows its hosts by itself: without the variables each would take itself for the first.
    """
    if (known := jax.process_count()) != count():
        raise ClusterError(
            _COUNT,
            f"says {count()} process, but the devices belong to {known}; in each process set "
            f"{_ADDRESS}, {_COUNT}={known} and {_INDEX}",
        )


def gather(name: str, value: str, timeout: float = _PATIENCE) -> list[str]:
    """Every process's value, in their order; with one process, its own.

    All processes call it with the same names in the same order, from any thread. timeout: seconds.
    Raises ClusterError naming the process that did not answer. Process 0 reads all and publishes
    the list, which is two messages per process instead of one per pair.
    """
    client = distributed.global_state.client
    if client is None or count() == 1:
        return [value]
    with _calls_lock:
        call = _calls[name] = _calls.get(name, 0) + 1
    key, wait = f"jaxlm/{name}/{call}", int(timeout * 1000)
    asked = 0
    try:
        if index() == 0:
            values = [value]
            for asked in range(1, count()):
                values.append(client.blocking_key_value_get(f"{key}/{asked}", wait))
            client.key_value_set(f"{key}/all", json.dumps(values))
            if call > 1:  # who answered this call has read the one before
                client.key_value_delete(f"jaxlm/{name}/{call - 1}/")
        else:
            client.key_value_set(f"{key}/{index()}", value)
            values = json.loads(client.blocking_key_value_get(f"{key}/all", wait))
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ClusterError(
            f"process {asked}", f"did not answer at {name!r} within {timeout:g} s ({reason})"
        ) from error
    return values


def together(name: str, work: Callable[[], T]) -> T:
    """Run `work` here and learn how it went everywhere: a failure on one process is raised on all.

    Returns this process's result. A JaxlmError arrives on the others as the same class with the
    process named, any other exception as ClusterError.
    """
    if count() == 1:
        return work()
    try:
        result = work()
    except Exception as error:
        gather(name, _describe(error))
        raise
    for process, answer in enumerate(gather(name, "")):
        _raise(process, answer)
    return result


def agree(name: str, work: Callable[[], T]) -> T:
    """Process 0 runs `work`; all return its result, which JSON must hold, or raise its error."""
    if count() == 1:
        return work()
    if index() != 0:
        answer = gather(name, "")[0]
        _raise(0, answer)
        return json.loads(answer)["value"]
    try:
        result = work()
    except Exception as error:
        gather(name, _describe(error))
        raise
    gather(name, json.dumps({"value": result}))
    return result


def exit_now(code: int) -> NoReturn:
    """Flush what is written and leave at once.

    After a failure the orderly way out waits for the other processes, up to 300 s, and then aborts.
    Process 0 leaves last: its end aborts, with code 134, whoever is still there.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, RuntimeError):
            continue  # a closed pipe, or a write that a signal interrupted, must not keep it
    if index() == 0 and count() > 1:
        time.sleep(_GRACE)
    os._exit(code)


def _describe(error: Exception) -> str:
    if isinstance(error, JaxlmError):
        row = {"class": type(error).__name__, "where": error.where, "what": error.what}
    else:
        row = {"class": "ClusterError", "where": type(error).__name__, "what": str(error)}
    return json.dumps({"error": row})


def _raise(process: int, answer: str) -> None:
    row: dict[str, Any] = json.loads(answer or "{}").get("error")
    if row:
        known = {kind.__name__: kind for kind in _kinds(JaxlmError)}
        raise known.get(row["class"], ClusterError)(
            row["where"], f"{row['what']} (on process {process})"
        )


def _kinds(base: type[JaxlmError]) -> list[type[JaxlmError]]:
    return [base, *(kind for below in base.__subclasses__() for kind in _kinds(below))]


def _whole(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise ClusterError(name, f"{text!r} is not a whole number")
    return int(text)


def _resolve(address: str) -> tuple[str, int]:
    """host:port as an IP address and a port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ClusterError(_ADDRESS, f"{address!r} is not host:port; write it as 10.0.0.1:8476")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise ClusterError(
            _ADDRESS, f"the name {host!r} does not resolve ({error.strerror}); use an IP address"
        ) from None
    return str(found[0][4][0]), int(port)


def _check_bind(address: str, host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ClusterError(
                _ADDRESS,
                f"process 0 cannot listen on {address} ({error.strerror}); "
                "use an address of its own and a free port",
            ) from None


def _await_coordinator(address: str, host: str, port: int, timeout: float) -> None:
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=2).close()
        except OSError as error:
            if time.monotonic() >= end:
                raise ClusterError(
                    _ADDRESS,
                    f"nobody answers at {address} after {timeout:g} s ({error}); start process 0 "
                    "there and open the port between the hosts",
                ) from None
            time.sleep(0.2)
        else:
            return
