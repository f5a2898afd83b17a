"""The corpus that datatrove writes on a real Ray or SLURM, started here, is the local command's."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import slurm_here

from jaxlm.core import errors
from jaxlm.text import train

pytestmark = pytest.mark.peers
STAGES = ["hash", "write", "finish"]
TEXTS = [f"document {i % 33}, the quick brown fox {'jumps ' * (i % 33 % 13)}" for i in range(90)]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for part in range(3):
        rows = [json.dumps({"text": text}) + "\n" for text in TEXTS[part::3]]
        (folder / f"{part}.jsonl").write_text("".join(rows))
    train.train("bpe", 300, TEXTS).save(tmp_path / "tokenizer")
    return folder


def command(source, out, *more):
    line = [str(source), str(out), f"--tokenizer={source.parent}/tokenizer", "--deduplicate"]
    return [sys.executable, "-m", "jaxlm", "data", "tokenize", *line, *more]


def tokenize(source, out, *more):
    words = command(source, out, *more)
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)


def content(folder):
    other = ("lock", "claim.lock", "repeats.lock")
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.relative_to(folder).parts[0] not in ("digests", "logs")
        and path.name not in other
    }


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("datatrove", reason="datatrove is not installed: pip install .[datatrove]")
    pytest.importorskip("ray", reason="ray is not installed: pip install .[datatrove]")


def test_on_ray_every_byte_is_that_of_the_local_command(ray, source, tmp_path):
    assert tokenize(source, tmp_path / "local", "--workers=2").returncode == 0
    (source / "1.jsonl").rename(tmp_path / "1.jsonl")
    (source / "1.jsonl").write_text('{"text": "one"}\n{\n')
    bad = tokenize(source, tmp_path / "ray", "--executor=ray", "--workers=2")
    assert bad.returncode == 3, bad.stderr
    (line,) = bad.stderr.splitlines()  # of Ray's and datatrove's nothing
    assert "1.jsonl:2:2: not JSON" in line
    log = Path(line.rpartition("; its log is ")[2])
    assert "Traceback" in log.read_text() and log.is_relative_to(tmp_path / "ray" / "logs" / "hash")
    (tmp_path / "1.jsonl").rename(source / "1.jsonl")
    done = tokenize(source, tmp_path / "ray", "--executor=ray", "--workers=2")
    assert done.returncode == 0, done.stderr
    assert [told.partition(":")[0] for told in done.stderr.splitlines()] == STAGES
    assert "57 repeated a text" in done.stdout
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_on_ray_a_signal_is_one_line_and_the_same_line_goes_on(ray, source, tmp_path):
    out = tmp_path / "ray"
    process = subprocess.Popen(command(source, out, "--executor=ray"), stderr=subprocess.PIPE)
    while not (out / "texts" / "00000" / "shard.json").exists() and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == errors.STOPPED, err
    done = len([*out.glob("shards/*/shard.json")])
    *told, last = err.decode().splitlines()
    assert f"SIGTERM: stopped with {done} of 3 shards done; run the same line again" in last
    assert all(line.partition(":")[0] in STAGES for line in told)
    for _ in range(300):
        if not (left := writing(out)):
            break
        time.sleep(0.1)
    assert not left
    assert tokenize(source, out, "--workers=2").returncode == 0
    assert tokenize(source, tmp_path / "local", "--workers=2").returncode == 0
    assert content(out) == content(tmp_path / "local")


def test_a_ray_that_is_not_there_is_one_line(ray, source, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = tokenize(source, tmp_path / "ray", "--executor=ray")
    assert done.returncode == errors.CLUSTER
    (line,) = done.stderr.splitlines()
    assert "RAY_ADDRESS=127.0.0.1:1: [Errno 111] Connection refused; start Ray there" in line


def writing(out):
    """A process that writes a shard; 0 where none does."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # ended meanwhile
            file = link.readlink()
            if file.name == "train.ids" and file.is_relative_to(out) and "tmp-" in str(file):
                return int(link.parts[2])
    return 0


def test_on_ray_a_task_that_is_killed_is_done_again(ray, source, tmp_path):
    out = tmp_path / "ray"
    (source / "0.jsonl").write_text((source / "0.jsonl").read_text() * 1000)
    words = command(source, out, "--executor=ray")
    words.remove("--deduplicate")  # all of it is to be written
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    while not (found := writing(out)) and process.poll() is None:
        pass
    assert found, process.communicate()  # 0 would be the group of this process
    os.kill(found, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == errors.DONE and "ActorError" in log(out), err
    local = command(source, tmp_path / "local", "--workers=2")
    local.remove("--deduplicate")
    subprocess.run(local, check=True)
    assert content(out) == content(tmp_path / "local")


def log(out):
    return (out / "logs" / "engine.log").read_text()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    pytest.importorskip("datatrove", reason="datatrove is not installed: pip install .[datatrove]")
    with slurm_here.cluster(tmp_path_factory.mktemp("slurm")):
        yield


def submitted(source, out, *more):
    """Submit, and wait until SLURM has no job of ours any more; what the command said."""
    done = tokenize(source, out, "--executor=slurm", "--partition=debug", *more)
    for _ in range(1800):
        if not subprocess.run(["squeue", "--noheader"], capture_output=True).stdout:
            return done
        time.sleep(0.1)
    raise AssertionError(subprocess.run(["squeue"], capture_output=True, text=True).stdout)


def logs(out):
    return "".join(path.read_text() for path in out.glob("logs/*/slurm_logs/*.out"))


@slurm_here.needed
def test_on_slurm_every_byte_is_that_of_the_local_command(slurm, source, tmp_path):
    out = tmp_path / "slurm"
    assert tokenize(source, tmp_path / "local", "--workers=2").returncode == 0
    (source / "1.jsonl").rename(tmp_path / "1.jsonl")
    (source / "1.jsonl").write_text('{"text": "one"}\n{\n')
    bad = submitted(source, out)  # and what comes after the hashes does not wait forever
    assert bad.returncode == 0, bad.stderr
    assert "1.jsonl:2:2: not JSON" in logs(out)
    assert not (out / "shards").exists()
    (tmp_path / "1.jsonl").rename(source / "1.jsonl")
    done = submitted(source, out)
    assert done.returncode == 0 and "their logs are in it" in done.stderr.splitlines()[-1]
    assert (out / "manifest.json").exists(), logs(out)
    assert content(out) == content(tmp_path / "local")


@slurm_here.needed
def test_what_slurm_refuses_is_a_line_after_its_own(slurm, source, tmp_path):
    done = submitted(source, tmp_path / "out", "--partition=none")
    *theirs, ours = done.stderr.splitlines()
    assert done.returncode == errors.CLUSTER and "invalid partition" in theirs[0]
    assert ours == "jaxlm: error: sbatch: ended with code 1, see above"
