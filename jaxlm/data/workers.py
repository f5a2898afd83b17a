"""The parts of a corpus shared out: over processes here, and over the jobs of an array."""

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

from jaxlm.core.errors import ConfigError, DataError, JaxlmError, OutOfMemoryError, StoppedError
from jaxlm.data import cache
from jaxlm.data.cache import Say
from jaxlm.data.corpus import SHARD, SHARDS, shard_folder
from jaxlm.data.finishing import finish, shards_of
from jaxlm.data.stopping import SIGNALS
from jaxlm.data.tokenizing import (
    Part,
    Work,
    changed,
    find_repeats,
    hash_texts,
    parts,
    unhashed,
    without,
    write_shard,
)

ARRAY = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"
AGAIN = "run this line again when they are"
Share = tuple[int, int]
"""(i, n): every n-th part from the i-th on."""


def share(asked: str, environ: Mapping[str, str]) -> Share:
    """The parts of this job, by `--shard I/N`, else by the variables of SLURM's job arrays, else
    all. Raises ConfigError.
    """
    if not asked:
        if ARRAY[0] not in environ:
            return 0, 1
        said = {name: environ.get(name, "1") for name in ARRAY}
        if odd := next((name for name, text in said.items() if not text.isdecimal()), None):
            raise ConfigError(odd, f"{said[odd]!r} is no number; unset it, or give --shard")
        place, first, count = map(int, said.values())
        if not 0 <= place - first < count:
            what = f"{ARRAY[0]}={place} of {count} from {first}: the array has steps; give --shard"
            raise ConfigError("--shard", what)
        return place - first, count
    place, _, count = asked.partition("/")
    if not (place.isdecimal() and count.isdecimal() and int(place) < int(count)):
        raise ConfigError("--shard", f"{asked!r} is not I/N with I from 0 to N-1; write 0/8")
    return int(place), int(count)


def tokenize(
    work: Work, *, workers: int, mine: Share = (0, 1), say: Say = print
) -> dict[str, Any] | None:
    """Tokenize this job's parts by so many processes; the manifest, where all parts are done now.

    Raises what the first part that fails raises, when those that were begun have ended.
    """
    found = parts(work)
    own = found[mine[0] :: mine[1]]
    with counting(work, own):
        return _tokenize(work, found, own, workers=workers, mine=mine, say=say)


@contextmanager
def counting(work: Work, own: Sequence[Part]) -> Iterator[None]:
    """Say how many shards of these parts are there when a signal comes (stopping.py)."""
    try:
        yield
    except KeyboardInterrupt as end:
        cache.clear(work.folder)  # what workers left half written
        done = sum((shard_folder(work.folder, part.number) / SHARD).is_file() for part in own)
        what = f"stopped with {done} of {len(own)} shards done; run the same line again to go on"
        raise StoppedError(work.out, what) from end


def _tokenize(
    work: Work, found: list[Part], own: list[Part], *, workers: int, mine: Share, say: Say
) -> dict[str, Any] | None:
    repeated = None
    if work.deduplicate:
        _each(hash_texts, [(work, part) for part in own], workers)
        if left := unhashed(work, found):
            if mine[1] == 1:
                raise changed(found[left[0]])
            say(f"{len(left)} of {len(found)} parts are to be hashed by other jobs; {AGAIN}")
            return None
        repeated = find_repeats(work, len(found))
    calls = [(work, part, repeated) for part in own]
    _each(write_shard, calls, workers, lambda done: say(_told(done, len(own))))
    return conclude(work, found, mine, say)


def conclude(work: Work, found: list[Part], mine: Share, say: Say) -> dict[str, Any] | None:
    """The manifest over the shards of all parts; None, and a line, where some are left to others.

    Raises DataError where there are no other jobs.
    """
    if left := without(work.folder / SHARDS, len(found)):
        old, what = left, "are not there yet"
    else:
        shards, old = shards_of(work, found)
        if not old:
            return finish(work, shards)
        what = "are of files that have changed since"
    numbers = ", ".join(map(str, old[:8])) + ", ..." * (len(old) > 8)
    if mine[1] == 1:
        raise DataError(f"{work.out}: shards {numbers}", f"{what}; run the same line again")
    say(f"of {len(found)} shards {numbers} {what}: they are left to other jobs")
    return None


def _told(done: list[dict[str, Any]], count: int) -> str:
    documents, tokens = (sum(shard[name] for shard in done) for name in ("documents", "tokens"))
    return f"{len(done)} of {count} shards: {documents:,} documents, {tokens:,} tokens"


def _each(
    fn: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    workers: int,
    told: Callable[[list[Any]], None] = lambda done: None,
) -> None:
    """fn of every call, by so many processes; told: of all results so far, after each."""
    done: list[Any] = []
    count = min(workers, len(calls))
    if count < 2:
        for call in calls:
            done.append(fn(*call))
            told(done)
        return
    threads = max(1, (os.cpu_count() or 1) // count)
    with ProcessPoolExecutor(count, get_context("spawn"), _begin, (threads,)) as pool:
        started: list[BaseProcess] = []
        try:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:  # what starts now keeps that: a signal to all is for this process to answer
                pending = [pool.submit(fn, *call) for call in calls]
            finally:
                started += active_children()
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for each in as_completed(pending):
                done.append(each.result())
                told(done)
        except BrokenProcessPool as error:
            raise _broken(started) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _broken(started: list[BaseProcess]) -> JaxlmError:
    """What to say when a worker has died. Ends the others, by a signal that they get."""
    dead = connection.wait([worker.sentinel for worker in started], 0)
    for worker in started:
        worker.kill()
        worker.join()
    codes = [worker.exitcode for worker in started if worker.sentinel in dead]
    ends = [code for code in codes if code is not None]  # None: reaped elsewhere
    again = "use fewer --workers and run the same line again"
    if not ends or -signal.SIGKILL in ends:
        return OutOfMemoryError("workers", f"one was killed, likely for memory; {again}")
    end = signal.Signals(-ends[0]).name if ends[0] < 0 else f"exit code {ends[0]}"
    return JaxlmError("workers", f"one ended by {end}; --workers=1 shows why")


def _begin(threads: int) -> None:
    """In each process: a share of the cores, and an end when the one that started it ends."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    parent = parent_process()
    assert parent is not None
    end_with(parent)


@functools.cache
def end_with(parent: Any) -> None:
    """End this process when its parent ends: multiprocessing's, or that of a library like it."""

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
