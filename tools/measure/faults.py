"""How long a job takes to end, all of it, once something is wrong with one of its processes."""

import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxlm.core.errors import CLUSTER, INTERNAL, WATCHDOG
from measure import network
from measure.pipe import Answer, SideError, free_port, python_path

FLAGS = "--xla_force_host_platform_device_count=1"
STEP = 4
"""That of a fault, and how many rows of metrics show that a job trains."""
ABSENT = "192.0.2.1:8476"
"""An address that nobody has (RFC 5737)."""
LATEST = 600.0
"""Seconds after which a job is taken for one that never ends."""


def faults(shape: dict[str, Any], rounds: int, steps: int) -> Answer:
    """Seconds from a fault to the end of the last of a job's processes, the median of rounds.

    Each process is one of `jaxlm train` with one CPU device. Of a time limit, the seconds beyond
    it; of a job that never begins, the start of Python and its imports count. Raises SideError
    where a process has not ended with the code of the fault, or has left one behind.
    """
    count, limit = shape["processes"], shape["limit"]
    late = ("--join-timeout", str(limit))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text(Path(statistics.__file__).read_text())
        jobs: list[Job] = []

        def job(*more: str, **how: Any) -> Job:
            jobs.append(Job(folder, count, [*shape["words"], *more], **how))
            return jobs[-1]

        measures: dict[str, Callable[[], float]] = {
            "exception": lambda: job(fault="raise").ended(INTERNAL),
            "hang": lambda: job(f"watchdog={limit}", fault="hang").ended(WATCHDOG) - limit,
            "killed": lambda: job().killed(1),
            "killed_first": lambda: job().killed(0),
            "one_missing": lambda: job(*late, there=range(count - 1)).ended(CLUSTER) - limit,
            "unreachable": lambda: job(*late, at=ABSENT, there=[1]).ended(CLUSTER) - limit,
            "no_such_name": lambda: job(at="nobody.invalid:8476").ended(CLUSTER),
            "port_in_use": lambda: _taken(job),
        }
        if not network.reason():
            measures["vanished"] = lambda: _vanished(job, count)
        try:
            return {
                f"seconds_{fault}": statistics.median(measured() for _ in range(rounds))
                for fault, measured in measures.items()
            }
        except BaseException:  # Ctrl-C, too, does not reach the sessions of a job
            for last in jobs[-1:]:
                last.end()
            raise


class Job:
    """Processes of one job, from their start."""

    def __init__(
        self,
        folder: Path,
        count: int,
        words: list[str],
        fault: str = "none",
        at: str | None = None,
        there: Sequence[int] | None = None,
        hosts: list[list[str]] | None = None,
    ):
        """fault: of process 1, as `main` knows it. at: the coordinator. there: the processes that
        come. hosts: what runs a command on each.
        """
        self._run = Path(tempfile.mkdtemp(dir=folder))
        line = [sys.executable, "-m", "measure.faults", fault, "train", *words]
        line += [f"run_dir={self._run}/run", f"data.train={folder}/text.txt"]
        line += [f"data.cache={folder}/cache", "--processes", str(count), "--coordinator"]
        line += [at or f"127.0.0.1:{free_port()}", "--process"]
        own = {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu", "PYTHONPATH": python_path()}
        self._began = time.time()
        self._all: dict[int, subprocess.Popen[bytes]] = {}
        for process in there or range(count):
            with self._errors(process).open("wb") as errors:
                self._all[process] = subprocess.Popen(
                    [*(hosts[process] if hosts else ()), *line, str(process)],
                    env=os.environ | own,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )

    def killed(self, process: int) -> float:
        """Seconds from SIGKILL to a process that trains to the end of the others."""
        self.trains()
        self._all[process].kill()
        self._all[process].wait()
        return self.ended(CLUSTER, but=process)

    def trains(self) -> None:
        """Wait until there are some steps; a fault is counted from then, or from its own time."""
        path, until = self._run / "run" / "metrics.jsonl", time.time() + LATEST
        while not path.exists() or path.read_text().count("\n") < STEP:
            if time.time() > until or any(each.poll() for each in self._all.values()):
                raise SideError(f"faults: does not train: {self._said()}")
            time.sleep(0.05)
        self._began = time.time()

    def ended(self, code: int, but: int | None = None) -> float:
        """Seconds from the fault to the end of all, each with `code`, and of what they started."""
        ends: list[float] = []
        waits = [
            threading.Thread(target=lambda p=p: (p.wait(LATEST), ends.append(time.time())))
            for process, p in self._all.items()
            if process != but
        ]
        for wait in waits:
            wait.start()
        for wait in waits:
            wait.join()
        codes = {i: p.poll() for i, p in self._all.items() if i != but}
        if set(codes.values()) != {code}:
            raise SideError(f"faults: ended with {codes}, not {code}: {self._said()}")
        if left := [p.pid for p in self._all.values() if _lives(p.pid)]:
            raise SideError(f"faults: session {left[0]} still has processes")
        told = re.findall(r"^fault (\S+)$", self._said(), re.M)
        return max(ends) - (float(told[0]) if told else self._began)

    def end(self) -> None:
        """Kill its processes, and what they have started."""
        for process in self._all.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _errors(self, process: int) -> Path:
        return self._run / f"{process}.err"

    def _said(self) -> str:
        return "\n".join(self._errors(process).read_text() for process in self._all)


def _taken(job: Callable[..., Job]) -> float:
    """Another program has the coordinator's port."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        return job(at=f"127.0.0.1:{other.getsockname()[1]}", there=[0]).ended(CLUSTER)


def _vanished(job: Callable[..., Job], count: int) -> float:
    """The link of a host is cut: nothing is closed, and nothing answers."""
    with network.hosts(count) as hosts:
        whole = job(at=f"{network.address(0)}:8476", hosts=hosts)
        whole.trains()
        network.cut(1)
        return whole.ended(CLUSTER)


def _lives(session: int) -> bool:
    """Whether a process of that session is left."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    """`jaxlm` whose process 1 has a fault at STEP: reading its row raises, or never ends."""
    from jaxlm import cli
    from jaxlm.core import distributed
    from jaxlm.training import loop

    fault, whole = sys.argv[1], loop.prefetch

    def prefetch(fn: Callable[[int], Any], first: int, last: int, *more: Any) -> Any:
        def row(step: int) -> Any:
            if fault != "none" and distributed.index() == 1 and step >= STEP:
                os.write(2, f"fault {time.time()}\n".encode())
                if fault == "hang":
                    threading.Event().wait()
                raise RuntimeError("of the measurement")
            return fn(step)

        return whole(row, first, last, *more)

    loop.prefetch = prefetch
    cli.main(sys.argv[2:])


if __name__ == "__main__":
    main()
