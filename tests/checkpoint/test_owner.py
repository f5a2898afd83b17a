"""One run writes to a directory; a dead one's is taken over."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxlm.checkpoint import owner
from jaxlm.checkpoint.owner import own
from jaxlm.core.errors import CheckpointError, StorageError

HOLD = """
import os, sys, time
from jaxlm.checkpoint.owner import own
with own(sys.argv[1]):
    if "fork" in sys.argv and os.fork() == 0:
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(600)
    os.write(1, b"mine\\n")
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts processes that own tmp_path; all are gone at the end."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def content(folder):
    return json.loads((folder / "owner").read_text())


def test_a_second_run_is_told_who_and_how_to_stop_it(tmp_path, holder):
    first = holder()
    assert first.stdout.readline() == "mine\n"
    with pytest.raises(CheckpointError) as caught, own(tmp_path):
        pass
    assert caught.value.code == 4
    host = content(tmp_path)["host"]
    assert f"owned by {first.pid}@{host}" in str(caught.value)
    assert f"kill {first.pid}" in str(caught.value)
    assert content(tmp_path)["pid"] == first.pid


def test_a_killed_owner_is_replaced_and_the_run_keeps_its_id(tmp_path, holder):
    first = holder()
    assert first.stdout.readline() == "mine\n"
    run = content(tmp_path)["run"]
    first.send_signal(signal.SIGKILL)
    first.wait()
    with own(tmp_path) as mine:
        assert (mine.run, mine.pid) == (run, os.getpid())
        assert content(tmp_path)["ended"] is None
    assert content(tmp_path)["ended"] is not None
    with own(tmp_path) as again:
        assert again.run == run


def test_orphans_of_a_dead_owner_do_not_hold_it(tmp_path, holder):
    first = holder("fork")
    lines = {first.stdout.readline().strip(), first.stdout.readline().strip()}
    orphan = int((lines - {"mine"}).pop())
    first.send_signal(signal.SIGKILL)
    first.wait()
    try:
        os.kill(orphan, 0)  # it lives, with the lock it inherited
        with own(tmp_path, watch=0.2) as mine, pytest.raises(CheckpointError), own(tmp_path):
            assert mine.pid == os.getpid()
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_of_two_that_start_at_once_one_wins(tmp_path, holder):
    both = [holder(), holder()]
    deadline = time.monotonic() + 60
    while all(process.poll() is None for process in both) and time.monotonic() < deadline:
        time.sleep(0.05)
    codes = [process.poll() for process in both]
    assert sorted(code is None for code in codes) == [False, True]
    winner = both[codes.index(None)]
    assert winner.stdout.readline() == "mine\n"
    assert content(tmp_path)["pid"] == winner.pid


@pytest.mark.parametrize("alive", [True, False])
def test_a_foreign_host_is_watched(tmp_path, monkeypatch, alive):
    """The file of another host, on a disk whose locks do not reach it, changes or does not."""
    foreign = {"pid": 1, "host": "elsewhere", "born": "1", "run": "abc", "started": "then"}
    path = tmp_path / "owner"
    path.write_text(json.dumps(foreign))
    ticks = iter(range(1000))

    def pause(seconds):
        if alive:
            os.utime(path, ns=(0, next(ticks)))

    monkeypatch.setattr(owner.time, "sleep", pause)
    if alive:
        with pytest.raises(CheckpointError, match="1@elsewhere"), own(tmp_path, watch=9):
            pass
    else:
        with own(tmp_path, watch=0.05) as mine:
            assert mine.run == "abc"


def test_a_locked_run_of_a_container_with_this_name_is_watched_too(tmp_path, monkeypatch):
    """Its process number says nothing here; its file changes while it lives."""
    gone = {"pid": 2**22 + 1, "host": socket.gethostname(), "born": "1", "run": "abc"}
    path = tmp_path / "owner"
    path.write_text(json.dumps({**gone, "started": "then"}))
    ticks = iter(range(1000))
    monkeypatch.setattr(owner.time, "sleep", lambda _: os.utime(path, ns=(0, next(ticks))))
    with path.open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="owned by"), own(tmp_path, watch=9):
            pass


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"), own(tmp_path / "file" / "run"):
        pass
