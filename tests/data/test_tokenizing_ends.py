"""A signal, or a worker that is killed: one line, only whole shards, and the same line goes on."""

import json
import os
import signal
import time
from pathlib import Path

import processes
import pytest

from jaxlm.core import errors

PARTS = 6


@pytest.fixture(scope="module")
def line(tmp_path_factory, tokenizer):
    """The words of the command but OUT's: the first part takes a moment, the others some more."""
    folder = tmp_path_factory.mktemp("ends")
    tokenizer.save(folder / "tokenizer")
    (folder / "source").mkdir()
    for number in range(PARTS):
        texts = [f"fox {number} {row} " * 30 for row in range(3000 if number else 2)]
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "source" / f"{number}.jsonl").write_text(rows)
    return ["data", "tokenize", str(folder / "source"), f"--tokenizer={folder}/tokenizer"]


@pytest.fixture(scope="module")
def whole(line, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    code, _, err = processes.run(*line, str(out), "--workers=1")
    assert code == errors.DONE, err
    return shards(out)


def shards(out):
    """Shard -> (its file on the disk, what it says)."""
    found = sorted(out.glob("shards/*/shard.json"))
    return {path.parent.name: (path.stat().st_ino, path.read_text()) for path in found}


def said(found):
    return {number: text for number, (_, text) in found.items()}


def begun(line, out, count):
    """The command in a process group of its own, when the first shard is there."""
    process = processes.start(*line, str(out), f"--workers={count}", start_new_session=True)
    while not shards(out) and process.poll() is None:
        time.sleep(0.01)
    return process


def group(process):
    """The processes of its group that are there, besides zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        if int(number) == process.pid and state != "Z":
            found.append(int(path.parent.name))
    return found


def ended(process):
    """Whether all of its group end; one that cleans up after the others, a moment later."""
    for _ in range(600):
        if not group(process):
            return True
        time.sleep(0.1)
    return False


def goes_on(line, out, whole):
    """The same line keeps the shards that are there, and the others come."""
    before = shards(out)
    assert 0 < len(before) < PARTS
    code, _, err = processes.run(*line, str(out), "--workers=2")
    assert code == errors.DONE, err
    after = shards(out)
    assert before.items() <= after.items() and said(after) == said(whole)
    assert not list(out.glob("tmp-*"))


@pytest.mark.parametrize("name, count", [("SIGTERM", 2), ("SIGINT", 2), ("SIGTERM", 1)])
def test_a_signal_to_all_ends_all_and_the_same_line_goes_on(name, count, line, whole, tmp_path):
    process = begun(line, tmp_path / "out", count)
    os.killpg(process.pid, signal.Signals[name])
    _, err = process.communicate(timeout=60)
    assert process.returncode == errors.STOPPED, err
    there = len(shards(tmp_path / "out"))
    *told, last = err.splitlines()
    assert f"{name}: stopped with {there} of {PARTS} shards done; run the same line again" in last
    assert all(f" of {PARTS} shards: " in each for each in told)
    assert not list((tmp_path / "out").glob("tmp-*")) and ended(process)
    goes_on(line, tmp_path / "out", whole)


DEATHS = [
    ("SIGKILL", errors.MEMORY, "one was killed, likely for memory; use fewer --workers"),
    ("SIGSEGV", errors.INTERNAL, "one ended by SIGSEGV; --workers=1 shows why"),
]


@pytest.mark.parametrize("name, code, what", DEATHS)
def test_a_worker_that_dies_is_one_line(name, code, what, line, whole, tmp_path):
    process = begun(line, tmp_path / "out", 2)
    workers = [pid for pid in group(process) if b"spawn_main" in cmdline(pid)]
    os.kill(workers[0], signal.Signals[name])
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    *told, last = err.splitlines()
    assert f"workers: {what}" in last
    assert all(f" of {PARTS} shards: " in each for each in told) and ended(process)
    if code == errors.MEMORY:
        goes_on(line, tmp_path / "out", whole)


def cmdline(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_when_the_command_is_killed_its_workers_end_and_the_same_line_goes_on(
    line, whole, tmp_path
):
    process = begun(line, tmp_path / "out", 2)
    process.kill()
    process.communicate(timeout=60)  # until no worker holds its output any more
    assert ended(process)
    goes_on(line, tmp_path / "out", whole)
