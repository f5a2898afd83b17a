"""Every process of a job in touch with process 0: who has come before jax starts, who leaves after.

Process 0 listens where jax will, until all have come, and then leaves the port to it. The
connections stay. Through them a process that fails says why, and one that is killed is missed by
its connection's end, at once and by name; jax alone tells after a heartbeat's time, and not whom.
One JSON object a line; nothing that is read here is run.
"""

import asyncio
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from jaxlm.core.errors import CLUSTER, ClusterError, JaxlmError
from jaxlm.core.job import Job

T = TypeVar("T")
Says = dict[str, Any]

_LONGEST = 2**20  # bytes of a line
_RETRY = 0.2  # seconds between two attempts to reach process 0
_LATE = 15.0  # seconds that process 0 has to answer beyond the time limit
_LINGER = 1.0  # seconds in which late processes are still told that nothing begins
_SAY = 2.0  # seconds that the last word of a process may take
_ALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class Cause(NamedTuple):
    """Why a job ends."""

    process: int
    host: str
    code: int
    line: str
    """What that process says, without its name."""


class Lifeline:
    """The connection of this process with the others."""

    def __init__(self, job: Job, host: str, port: int, lost: Callable[[Cause], None]):
        """host, port: of process 0. lost: called, in a thread, where another process fails."""
        self._job, self._at, self._lost = job, (host, port), lost
        self._name = socket.gethostname()
        self._loop = asyncio.new_event_loop()
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._names: dict[int, str] = {}
        self._says: dict[int, Says] = {}
        self._spoilt: JaxlmError | None = None
        self._refusal: Says | None = None
        self._answered = self._leaving = False
        self._changed: asyncio.Event | None = None

    def call(self, says: Says, decide: Callable[[list[Says]], list[Says]], timeout: float) -> Says:
        """What process 0 answers this process once all have come.

        says: of this process. decide: at process 0, from what all say, in their order, to what each
        is answered; a JaxlmError of it is raised on all. timeout: seconds. Raises ClusterError
        naming who did not come.
        """
        threading.Thread(target=self._loop.run_forever, name="lifeline", daemon=True).start()
        own = {"process": self._job.process, "processes": self._job.processes}
        told = says | own | {"host": self._name}
        if self._job.process == 0:
            return self._wait(self._gather(told, decide, timeout))
        return self._wait(self._report(told, timeout))

    def leave(self, code: int, line: str) -> None:
        """Say that this process ends, and why where the code is not 0."""
        if self._leaving:
            return
        self._leaving = True
        cause = Cause(self._job.process, self._name, code, line)
        with suppress(OSError, TimeoutError):  # who does not hear it misses the connection
            asyncio.run_coroutine_threadsafe(self._tell(cause), self._loop).result(_SAY)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _gather(
        self, told: Says, decide: Callable[[list[Says]], list[Says]], timeout: float
    ) -> Says:
        _allow_files(self._job.processes)
        self._changed = asyncio.Event()
        self._says[0], self._names[0] = told, self._name
        server = await self._listen()
        try:
            async with asyncio.timeout(timeout):
                while len(self._says) < self._job.processes and not self._spoilt:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        self._answered = True
        try:
            answers = decide(self._complete(timeout))
        except JaxlmError as error:
            self._refusal = {"error": describe(error)}
            self._broadcast(self._refusal)
            await asyncio.sleep(_LINGER)
            raise
        finally:
            server.close()
        for process, writer in self._writers.items():
            writer.write(_line(answers[process]))
        return answers[0]

    async def _listen(self) -> asyncio.Server:
        count = self._job.processes
        try:
            return await asyncio.start_server(
                self._meet, *self._at, limit=_LONGEST, backlog=count, reuse_address=True
            )
        except OSError as error:
            at, reason = self._job.coordinator, os.strerror(error.errno or 0)
            what = f"process 0 cannot listen on {at} ({reason})"
            advice = "use an address of its own and a free port"
            raise ClusterError("coordinator", f"{what}; {advice}") from None

    def _complete(self, timeout: float) -> list[Says]:
        """What all say. Raises ClusterError where one is missing, gone or there twice."""
        if self._spoilt:
            raise self._spoilt
        missing = [i for i in range(self._job.processes) if i not in self._says]
        if missing:
            here = ", ".join(f"{i} ({self._names[i]})" for i in sorted(self._says)[:8])
            few = ", ".join(map(str, missing[:8])) + ", ..." * (len(missing) > 8)
            what = (
                f"did not come within {timeout:g} s; here are {here}; see the logs of the missing"
            )
            raise ClusterError(f"process {few} of {self._job.processes}", what)
        return [self._says[i] for i in range(self._job.processes)]

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, at process 0, from its first line to its end."""
        try:
            told = json.loads(await reader.readline())
            process, name = told["process"], told["host"]
            known = isinstance(process, int) and 0 < process < self._job.processes
        except (ValueError, KeyError, TypeError, OSError):
            known, process, name, told = False, -1, "", {}
        if not known or not isinstance(name, str):
            writer.close()  # none of us
            return
        _keep_alive(writer)
        if self._refusal:
            writer.write(_line(self._refusal))
            return
        if process in self._says:
            both = f"{self._names[process]} and {name} both say that they are it"
            error = ClusterError(f"process {process}", f"{both}; give each its own number")
            self._spoilt = self._spoilt or error
            writer.write(_line({"error": describe(error)}))
        else:
            told["skew"] = time.time() - told.get("clock", time.time())
            self._says[process], self._names[process] = told, name
            self._writers[process] = writer
        assert self._changed is not None
        self._changed.set()
        cause = await _heard(reader, process, name)
        if self._says.get(process) is not told:
            return
        self._writers.pop(process)
        if not self._answered:
            self._spoilt = ClusterError(f"process {process} ({name})", cause.line)
            self._changed.set()
        elif cause.code:
            self._broadcast(cause._asdict())
            self._end(cause)

    async def _report(self, told: Says, timeout: float) -> Says:
        reader, writer = await self._reach(time.monotonic() + timeout, timeout)
        _keep_alive(writer)
        self._writers[0] = writer
        writer.write(_line(told))
        try:
            async with asyncio.timeout(timeout + _LATE):
                answer = json.loads(await reader.readline() or "null")
        except (OSError, TimeoutError):
            answer = None
        except ValueError as error:
            what = f"what answers at {self._job.coordinator} is another program; use another port"
            raise ClusterError("coordinator", what) from error
        if not isinstance(answer, dict):
            where = f"process 0 at {self._job.coordinator}"
            raise ClusterError(where, "left before all had come; see its log")
        if "error" in answer:
            raised(answer["error"])
        self._names[0] = answer.get("host", "?")
        self._task = self._loop.create_task(self._follow(reader))
        return answer

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        cause = await _heard(reader, 0, self._names[0])
        if cause.code:
            self._end(cause)

    async def _reach(
        self, end: float, timeout: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            try:
                async with asyncio.timeout(max(1.0, min(5.0, end - time.monotonic()))):
                    return await asyncio.open_connection(*self._at, limit=_LONGEST)
            except (OSError, TimeoutError) as error:
                if time.monotonic() >= end:
                    reason = str(error) or "no answer"
                    what = (
                        f"nobody answers at {self._job.coordinator} after {timeout:g} s ({reason})"
                    )
                    advice = "start process 0 there and open the port between the hosts"
                    raise ClusterError("coordinator", f"{what}; {advice}") from None
            await asyncio.sleep(_RETRY)

    async def _tell(self, cause: Cause) -> None:
        self._broadcast(cause._asdict())
        for writer in self._writers.values():
            await writer.drain()

    def _broadcast(self, message: Says) -> None:
        for writer in list(self._writers.values()):
            writer.write(_line(message))

    def _end(self, cause: Cause) -> None:
        if not self._leaving:
            self._leaving = True
            threading.Thread(target=self._lost, args=(cause,), daemon=True).start()


def describe(error: Exception) -> dict[str, str]:
    """An error as JSON holds it: a JaxlmError by its class, any other as a ClusterError."""
    if isinstance(error, JaxlmError):
        return {"class": type(error).__name__, "where": error.where, "what": error.what}
    return {"class": "ClusterError", "where": type(error).__name__, "what": str(error)}


def raised(row: dict[str, str], of: str = "") -> None:
    """Raise the error that `describe` made this of; of: whose it is."""
    known = {kind.__name__: kind for kind in _kinds(JaxlmError)}
    kind = known.get(row["class"], ClusterError)
    raise kind(row["where"], f"{row['what']} ({of})" if of else row["what"])


def _kinds(base: type[JaxlmError]) -> list[type[JaxlmError]]:
    return [base, *(kind for below in base.__subclasses__() for kind in _kinds(below))]


async def _heard(reader: asyncio.StreamReader, process: int, name: str) -> Cause:
    """The last word of a connection; code 0 of one that ended well."""
    try:
        row = json.loads(await reader.readline())
        return Cause(int(row["process"]), str(row["host"]), int(row["code"]), str(row["line"]))
    except (ValueError, KeyError, TypeError, OSError):
        what = "is gone without a word: killed, or its host is lost; see its log"
        return Cause(process, name, CLUSTER, what)


def _line(row: Says) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Miss a host that vanished without closing anything, in three quarters of a minute."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _ALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _allow_files(processes: int) -> None:
    """Let process 0 hold a connection with each; the usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4 * processes + 256:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
