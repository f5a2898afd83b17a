"""The same parts by datatrove's executors: on a Ray cluster, or in SLURM's job arrays.

datatrove hands out the parts, keeps logs in the folder's `logs/`, and starts again what died. What
is done for a part, and so what is written, is that of `jaxlm data tokenize` without it. All
machines see the source and the folder under the same paths and have the same jaxlm.

What the engines say goes to logs: the one line that ends a command names the task's.
"""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.core import errors
from jaxlm.core.errors import ClusterError, ConfigError, JaxlmError
from jaxlm.data import tokenizing
from jaxlm.data.cache import Say
from jaxlm.data.tokenizing import Work
from jaxlm.data.workers import conclude, counting, end_with

LOGS, ENGINE = "logs", "engine.log"


def stages(work: Work) -> list[tuple[str, int]]:
    """(what is done, by how many tasks), one after the other."""
    count = len(tokenizing.parts(work))
    return [("hash", count)] * work.deduplicate + [("write", count), ("finish", 1)]


@dataclass
class Stage:
    """A step of datatrove's pipeline: pickled, and called with the rank of a task."""

    work: Work
    name: str

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Do the parts of a task, or say in the folder why that failed."""
        failure = self.failure(rank)
        failure.unlink(missing_ok=True)
        try:
            with _missed():
                self._run(rank, world_size)
        except Exception as error:
            failure.parent.mkdir(parents=True, exist_ok=True)
            failure.write_text(json.dumps(_told(error)))
            raise

    def failure(self, rank: int) -> Path:
        """Where a task says why it failed."""
        return self.work.folder / LOGS / self.name / "failures" / f"{rank:05d}.json"

    def _run(self, rank: int, world_size: int) -> None:
        work, found = self.work, tokenizing.parts(self.work)
        if self.name == "finish":
            conclude(work, found, (rank, world_size), print)
            return
        write = self.name == "write"
        repeated = tokenizing.find_repeats(work, len(found)) if write and work.deduplicate else None
        for part in found[rank::world_size]:
            if write:
                tokenizing.write_shard(work, part, repeated)
            else:
                tokenizing.hash_texts(work, part)


@contextmanager
def _missed() -> Iterator[None]:
    """While it is entered, who waits for this process ends when this is killed; and this when that.

    A task on Ray is in a pool of datatrove's, which would wait for ever for what is lost with a
    process; Ray misses the pool, and datatrove has another do its task.
    """
    from multiprocess.process import parent_process  # pyright: ignore[reportMissingImports]

    if (waiting := parent_process()) is None:
        yield
        return
    ended, alive = os.pipe()
    if (watcher := os.fork()) == 0:
        try:
            os.close(alive)
            if not os.read(ended, 1):
                os.kill(waiting.pid, signal.SIGKILL)
        finally:
            os._exit(0)
    os.close(ended)
    end_with(waiting)
    try:
        yield
    finally:
        with suppress(BrokenPipeError):
            os.write(alive, b".")
        os.close(alive)
        os.waitpid(watcher, 0)


def _told(error: Exception) -> list[str]:
    """Its class of core.errors, where, and what."""
    if not isinstance(error, JaxlmError):
        return ["JaxlmError", "internal", f"{type(error).__name__}: {error}"]
    names = [each.__name__ for each in type(error).mro()]
    return [next(name for name in names if hasattr(errors, name)), error.where, error.what]


def on_ray(work: Work, *, workers: int, say: Say) -> None:
    """Run all stages on the Ray cluster of RAY_ADDRESS, or on one started here, and wait.

    workers: most tasks at a time, 0 for as many as fit. Raises what the first task that failed
    raised, with the name of its log.
    """
    executors = _executors(work)
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("--executor", "ray is not installed; pip install ray") from error
    ours = signal.getsignal(signal.SIGTERM)  # Ray takes it for itself
    logging.getLogger("ray").setLevel(logging.ERROR)
    _reach(os.environ.get("RAY_ADDRESS", ""))
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    finally:
        signal.signal(signal.SIGTERM, ours)
    with counting(work, tokenizing.parts(work)):
        try:
            _on_ray(work, executors, workers, say)
        finally:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raise ClusterError where nobody listens at HOST:PORT, which Ray would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), 10).close()
        except OSError as error:
            what = f"{error}; start Ray there, or unset it for one that is started here"
            raise ClusterError(f"RAY_ADDRESS={address}", what) from error


def _on_ray(work: Work, executors: Any, workers: int, say: Say) -> None:
    for name, tasks in stages(work):
        stage, logs = Stage(work, name), work.folder / LOGS / name
        for old in ("completions", "failures"):  # those of an earlier time
            shutil.rmtree(logs / old, ignore_errors=True)
        how = {"tasks": tasks, "workers": workers or -1, "logging_dir": str(logs)}
        executors.RayPipelineExecutor([stage], **how, skip_completed=False).run()
        for rank in range(tasks):
            _raise(stage, rank)
        say(f"{name}: {tasks} tasks are done")


def on_slurm(work: Work, *, workers: int, partition: str, time: str, say: Say) -> None:
    """Give SLURM an array of jobs for each stage, each after the one before, and return.

    workers: most jobs of an array at a time, 0 for as many as fit; partition, time: as of sbatch.
    """
    executors = _executors(work)
    activate = Path(sys.prefix, "bin", "activate")
    last = None
    for name, tasks in stages(work):
        last = executors.SlurmPipelineExecutor(
            [Stage(work, name)],
            tasks=tasks,
            workers=workers or -1,
            partition=partition,
            time=time,
            qos="",
            job_name=f"tokenize-{name}",
            logging_dir=str(work.folder / LOGS / name),
            skip_completed=False,
            depends=last,
            sbatch_args={"kill-on-invalid-dep": "yes"},  # after one that failed none would ever run
            venv_path=str(activate) if activate.is_file() else None,
        )
    assert last is not None
    try:
        last.run()
    except subprocess.CalledProcessError as error:
        raise ClusterError("sbatch", f"ended with code {error.returncode}, see above") from error
    except OSError as error:
        what = f"{error.strerror}; run this where jobs are submitted"
        raise ClusterError("sbatch", what) from error
    say(f"jobs {last.job_id} and those before it write {work.out}; their logs are in it")


def _executors(work: Work) -> Any:
    """datatrove's, which log into the folder; its tasks have logs of their own."""
    try:
        from datatrove import executor  # pyright: ignore[reportMissingImports]
        from loguru import logger  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        what = "datatrove is not installed; in the checkout, pip install -e '.[datatrove]'"
        raise ConfigError("--executor", what) from error
    logger.remove()
    logger.add(str(work.folder / LOGS / ENGINE), colorize=False)
    return executor


def _raise(stage: Stage, rank: int) -> None:
    """Raise what a task raised, or that it never ended."""
    logs = stage.work.folder / LOGS / stage.name
    log = logs / "logs" / f"task_{rank:05d}.log"
    if stage.failure(rank).is_file():
        name, where, what = json.loads(stage.failure(rank).read_text())
        raise getattr(errors, name)(where, f"{what}; its log is {log}")
    if not (logs / "completions" / f"{rank:05d}").is_file():
        log = log if log.is_file() else stage.work.folder / LOGS / ENGINE
        raise ClusterError(f"task {rank}", f"did not end; its log is {log}")
