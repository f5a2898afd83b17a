"""One owner per run directory, proved by a lock that the kernel drops when the owner dies.

RUN/owner names the process that writes there. The proof is flock on that file: it outlives neither
`kill -9` nor a reboot. Where flock does not reach (another host, on some network disks), the owner
touches the file every few seconds, and who finds a foreign host's file watches whether it changes:
no clock of one host is compared with another's.
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from jaxlm.core.errors import CheckpointError, StorageError

NAME = "owner"
_BEAT = 5.0  # seconds between touches
_WATCH = 20.0  # seconds to watch the file of a foreign host


@dataclass(frozen=True)
class Owner:
    """What RUN/owner holds. run: kept over all resumes; times: UTC, ISO 8601."""

    pid: int
    host: str
    born: str
    run: str
    started: str
    ended: str | None = None


@contextmanager
def own(run_dir: str | os.PathLike[str], *, watch: float = _WATCH) -> Iterator[Owner]:
    """Own the run directory, which is made if need be, until the block ends.

    With several processes, process 0 alone. A dead owner's directory is taken over; one of another
    host after `watch` seconds in which its file did not change. Object stores (gs://, s3://) have
    no locks: nothing is owned there. Raises CheckpointError naming pid@host when another run is at
    work, StorageError when the directory cannot be written.
    """
    if "://" in os.fspath(run_dir):
        yield _me(uuid.uuid4().hex)
        return
    path = Path(run_dir) / NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, before = _lock(path, watch)
        me = _me(before.run if before else uuid.uuid4().hex)
        _write(handle, me)
    except OSError as error:
        raise StorageError(
            str(path), f"cannot be written ({error.strerror}); choose another run_dir"
        ) from error
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(handle, done), name="owner", daemon=True)
    beat.start()
    try:
        yield me
    finally:
        done.set()
        beat.join()
        with suppress(OSError):
            _write(handle, Owner(**{**asdict(me), "ended": _now()}))
        os.close(handle)


def _lock(path: Path, watch: float) -> tuple[int, Owner | None]:
    """(the locked file, who had it before). Raises CheckpointError when the owner is alive."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        held = False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
        except OSError:
            pass  # no locks on this disk: what the file says must do
        before = _read(handle)
        if _is_alive(path, before, held, watch):
            os.close(handle)
            raise _owned(path, before)
        if held:  # by orphaned children of a dead owner, which inherited the lock
            _forget(path, handle)
        elif _is_same(path, handle):
            return handle, before
        os.close(handle)  # taken over by another newcomer meanwhile: look again


def _is_alive(path: Path, before: Owner | None, held: bool, watch: float) -> bool:
    if before is None:
        return held  # just made: the owner has the lock and has not written yet
    if before.ended is not None and not held:
        return False
    if before.host == socket.gethostname():
        # With the lock in hand the owner is dead, unless this disk has no locks. Without it, it may
        # live in another container of the same name, where its number is another's.
        return _born(before.pid) == before.born or (held and _changes(path, watch))
    return held or _changes(path, watch)


def _changes(path: Path, seconds: float) -> bool:
    first, end = path.stat().st_mtime_ns, time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        if path.stat().st_mtime_ns != first:
            return True
    return False


def _owned(path: Path, owner: Owner | None) -> CheckpointError:
    if owner is None:
        return CheckpointError(str(path), "another run has just started there; wait or stop it")
    stop = f"kill {owner.pid}" if owner.host == socket.gethostname() else f"stop it on {owner.host}"
    return CheckpointError(
        str(path),
        f"owned by {owner.pid}@{owner.host} since {owner.started}, run {owner.run[:8]}; "
        f"wait for it, stop it ({stop}), or choose another run_dir",
    )


def _forget(path: Path, handle: int) -> None:
    """Unlink the file, if the path still leads to it: the next try makes a fresh one."""
    with suppress(FileNotFoundError):
        if _is_same(path, handle):
            path.unlink()


def _is_same(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _read(handle: int) -> Owner | None:
    try:
        return Owner(**json.loads(os.pread(handle, 1 << 16, 0)))
    except (ValueError, TypeError):
        return None


def _write(handle: int, owner: Owner) -> None:
    text = json.dumps(asdict(owner), indent=1).encode() + b"\n"
    os.ftruncate(handle, 0)
    os.pwrite(handle, text, 0)
    os.fsync(handle)


def _beat(handle: int, done: threading.Event) -> None:
    while not done.wait(_BEAT):
        with suppress(OSError):
            os.utime(handle)


def _me(run: str) -> Owner:
    return Owner(os.getpid(), socket.gethostname(), _born(os.getpid()) or "", run, _now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _born(pid: int) -> str | None:
    """When the process started, to tell it from a later one with its number; None if it is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # alive, of another user
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""  # no /proc here: alive is all there is to know
    return None if fields[0] in "ZX" else fields[19]
