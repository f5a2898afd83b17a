"""Several processes as one program: start, agree, and leave without waiting for the others.

Messages go through the coordination service's key-value store, not through device collectives, so
that a background thread may send one while a step runs.
"""

import atexit
import ctypes
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # the key-value store has no public door
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.core import gpus
from jaxlm.core.errors import CLUSTER, INTERNAL, ClusterError, JaxlmError
from jaxlm.core.job import COORDINATOR, PROCESS, PROCESSES, Job, find
from jaxlm.core.lifeline import Cause, Lifeline, describe, raised

T = TypeVar("T")

TIMEOUT = 300.0
"""Seconds for all processes to come."""
SKEW = 30.0
"""Seconds between two clocks that are worth a line: certificates and file times depend on them."""
_HEARTBEAT = 60  # seconds after which a silent process is taken for dead; jax's default is 100
_SHUTDOWN = 15  # seconds an ending process waits for the others; jax's default is 300
_PATIENCE = 7 * 86400.0  # seconds a live process may prepare; a dead one ends all at once
_WORDS = 4.0  # seconds for what is written down before an end at once
_GRACE = 1.5  # seconds that process 0 gives the others to leave by themselves
_calls: dict[str, int] = {}  # how many gathers of each name this process has started
_calls_lock = threading.Lock()
_lifeline: Lifeline | None = None
_last_words: list[Callable[[int, str], None]] = []
_heard = threading.Event()


def initialize(
    job: Job | None = None,
    facts: Mapping[str, str] | None = None,
    *,
    timeout: float = TIMEOUT,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Join the other processes of a job; nothing for a process that is alone.

    job: by default what `job.find` finds. facts: what must be the same on all, by name, such as
    versions. timeout: seconds for all to come. say: told a line about each process, at process 0.
    Call it before anything touches a device. The coordinator listens on the interface of its
    address alone, because its port is neither encrypted nor authenticated. Raises ClusterError on
    all for one that is missing, there twice, or another than the rest, by its name; and for a
    coordinator that does not answer or a port that is taken, where jax aborts the process.
    """
    global _lifeline
    job = job or find()
    if job is None or distributed.global_state.client is not None:
        return
    host, port = _resolve(job)
    _lifeline = Lifeline(job, host, port, _lost)
    cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
    says = {
        "facts": dict(facts or {}),
        "gpus": () if cpu else gpus.visible(),
        "clock": time.time(),
    }
    answer = _lifeline.call(says, lambda all_say: _decide(all_say, job, say), timeout)
    atexit.register(_lifeline.leave, 0, "")  # runs after jax's own, which waits for the others
    _bypass_proxies(host)
    _abort_as_cluster_error()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    jax.distributed.initialize(
        at,
        job.processes,
        job.process,
        answer["gpus"],
        "deactivate",
        initialization_timeout=max(1, round(timeout)),
        coordinator_bind_address=at,
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=_SHUTDOWN,
    )


def _decide(
    says: list[dict[str, Any]], job: Job, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """What each process is answered: the GPUs that are its own. Raises ClusterError, on all."""
    names = [each["host"] for each in says]
    check_same(names, [each["facts"] | {"processes": each["processes"]} for each in says])
    own = gpus.share([tuple(each["gpus"]) for each in says])
    for process, (each, chosen) in enumerate(zip(says, own, strict=True)):
        seen = len(each["gpus"]) if chosen is None else len(chosen)
        what = f", {seen} GPU{'s' * (seen > 1)}" if seen else ""
        name = f"process {process} of {job.processes}: {each['host']}"
        say(f"{name}{what}")
        if abs(skew := each.get("skew", 0.0)) > SKEW:
            late = "behind" if skew > 0 else "ahead of"
            say(f"{name}: its clock is {abs(skew):.0f} s {late} that of process 0")
    return [{"gpus": chosen, "host": names[0]} for chosen in own]


def check_same(names: list[str], facts: list[dict[str, Any]]) -> None:
    """Raise ClusterError naming a process that says another thing than most do.

    names: of the hosts; facts: what each process says, by name.
    """
    for fact in facts[0]:
        values = [str(each.get(fact, "none")) for each in facts]
        (usual, many), *others = Counter(values).most_common()
        if not others:
            continue
        odd = next(i for i, value in enumerate(values) if value != usual)
        more = len(values) - many - 1
        first = values.index(usual)
        rest = f"the other {many}" if many > 1 else f"process {first} ({names[first]})"
        where = f"process {odd} ({names[odd]})" + (f" and {more} more" if more else "")
        what = f"has another {fact} than {rest}: {_short(values[odd])}, not {_short(usual)}"
        raise ClusterError(where, f"{what}; give all the same command, files and versions")


def _short(value: str) -> str:
    """A value that fits a line; of a longer one a digest."""
    return value if len(value) <= 24 else hashlib.sha256(value.encode()).hexdigest()[:12]


def compare(name: str, facts: Mapping[str, Any]) -> None:
    """Raise ClusterError, on all processes, where they do not say the same; all call it."""
    if count() > 1:
        rows = [json.loads(row) for row in gather(name, json.dumps([socket.gethostname(), facts]))]
        check_same([host for host, _ in rows], [each for _, each in rows])


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
            PROCESSES,
            f"says {count()} process, but the devices belong to {known}; in each process set "
            f"{COORDINATOR}, {PROCESSES}={known} and {PROCESS}",
        )


def device_sum() -> tuple[int, int]:
    """(A sum of one number from each device of all processes, what it should be)."""
    count = jax.device_count()
    mesh, numbers = Mesh(np.array(jax.devices()), ("data",)), np.arange(count, dtype=np.int32)
    spread = jax.make_array_from_callback(
        (count,), NamedSharding(mesh, P("data")), lambda at: numbers[at]
    )
    total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))(spread)
    return int(total), int(numbers.sum())


def joined() -> bool:
    """Whether this process is, or tried to become, one of several."""
    return _lifeline is not None


def name() -> str:
    """What to call this process: its host, and its number where there are several."""
    host = socket.gethostname()
    return f"process {index()} ({host})" if count() > 1 else host


@contextmanager
def last_word(work: Callable[[int, str], None]) -> Iterator[None]:
    """Meanwhile, where this process ends at once, without an exception, let `work` be told before.

    work: (exit code, line) in a thread, with _WORDS seconds to write down what it must.
    """
    _last_words.append(work)
    try:
        yield
    finally:
        _last_words.remove(work)


def hear_first(error: Exception) -> None:
    """Wait, once, for the word of another process whose failure `error` may be, by a collective
    that felt it: it ends this process. A JaxlmError is its own.
    """
    own = isinstance(error, JaxlmError) and error.code != INTERNAL
    if _lifeline is not None and not own and not _heard.is_set():
        _heard.set()
        time.sleep(_GRACE)


def fail(error: JaxlmError) -> None:
    """Let the other processes know why this one ends; they end with the same code."""
    if _lifeline is not None:
        hear_first(error)
        _lifeline.leave(error.code, str(error))


def abort(error: JaxlmError) -> NoReturn:
    """End this process and all others at once, from a thread that can raise nothing elsewhere."""
    line = f"{name()}: {error}"
    _write_down(error.code, line)
    os.write(2, f"jaxlm: error: {line}\n".encode())
    fail(error)
    exit_now(error.code)


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
        gather(name, json.dumps({"error": describe(error)}))
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
        gather(name, json.dumps({"error": describe(error)}))
        raise
    gather(name, json.dumps({"value": result}))
    return result


def exit_now(code: int) -> NoReturn:
    """Flush what is written and leave at once; the others are told that it is as it should be,
    unless `fail` has told them otherwise.

    After a failure the orderly way out waits for the other processes, up to 300 s, and then aborts.
    Process 0 leaves last: its end aborts, with code 134, whoever is still there.
    """
    if _lifeline is not None:
        _lifeline.leave(0, "")
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, RuntimeError):
            continue  # a closed pipe, or a write that a signal interrupted, must not keep it
    if index() == 0 and count() > 1:
        time.sleep(_GRACE)
    os._exit(code)


def _raise(process: int, answer: str) -> None:
    if row := json.loads(answer or "{}").get("error"):
        raised(row, f"on process {process}")


def _resolve(job: Job) -> tuple[str, int]:
    """The coordinator as an IP address and a port."""
    host, _, port = job.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        what = f"{job.coordinator!r} is not host:port; write it as 10.0.0.1:8476"
        raise ClusterError("coordinator", what)
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        what = f"the name {host!r} does not resolve ({error.strerror}); use an IP address"
        raise ClusterError("coordinator", what) from None
    address = str(found[0][4][0])
    named_here = host != "localhost" and not host.startswith("127.")
    if named_here and address.startswith("127."):
        address = _outward() or address  # /etc/hosts often gives a host's own name to 127.0.1.1
    return address, int(port)


def _outward() -> str | None:
    """The address of this host on the interface that leads out; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _bypass_proxies(host: str) -> None:
    """Let gRPC reach the coordinator directly where the environment names proxies."""
    for name in ("no_proxy", "NO_PROXY"):
        if any(key.lower().endswith("_proxy") for key in os.environ):
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))


def _abort_as_cluster_error() -> None:
    """Where jax's coordination service aborts the process, let its exit code be CLUSTER.

    The service takes no callback that works (its argument cannot be converted, in jaxlib 0.10 to
    0.12). The handler is libc's own _exit: it gets the signal's number, which is 6 as CLUSTER is.
    """
    assert signal.SIGABRT == CLUSTER
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT.value, ctypes.cast(libc._exit, ctypes.c_void_p))


def _lost(cause: Cause) -> None:
    """Another process ended: say why, and end as it did."""
    line = " ".join(cause.line.split())
    if not line.startswith("process "):  # the line names whom it is about
        line = f"process {cause.process} ({cause.host}): {line}"
    _write_down(cause.code, line)
    os.write(2, f"jaxlm: error: {line}\n".encode())
    exit_now(cause.code)


def _write_down(code: int, line: str) -> None:
    """Call the last words; a file system that hangs or fails must not keep the process."""

    def words() -> None:
        for word in list(_last_words):
            with suppress(Exception):  # one that fails must not keep the others from theirs
                word(code, line)

    work = threading.Thread(target=words, daemon=True)
    work.start()
    work.join(_WORDS)
