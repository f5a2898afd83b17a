"""A job here ends as its processes do, leaves none behind, and goes on when launched again."""

import io
import os
import re
import shlex
import signal
import time
from pathlib import Path

import processes
import pytest

from jaxlm import cli
from jaxlm.core import errors
from jaxlm.launch import local

PAGE = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
LAUNCH = ("launch", "local", "-n", "2", "--cpu-devices", "1", "--")


def children(launcher):
    """Its processes, process 0 first."""
    listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"


def until(there, launcher):
    while not there() and launcher.poll() is None:
        time.sleep(0.05)


@pytest.mark.once
def test_a_killed_process_ends_the_job_by_name_and_the_next_launch_goes_on(tmp_path):
    words = processes.words(tmp_path, "checkpoint.every=2", "steps=100000")
    launcher = processes.start(*LAUNCH, *words)
    until(lambda: len(processes.losses(tmp_path)) > 4, launcher)
    started = children(launcher)
    os.kill(started[1], signal.SIGKILL)
    _, err = launcher.communicate(timeout=100)
    assert launcher.returncode == errors.CLUSTER, err
    assert "jaxlm: error: process 1 (" in err and "gone without a word" in err
    assert all(gone(pid) for pid in started)
    before = len(processes.losses(tmp_path))
    launcher = processes.start(*LAUNCH, *words)
    until(lambda: len(processes.losses(tmp_path)) > before, launcher)
    started = children(launcher)
    launcher.send_signal(signal.SIGTERM)
    out, err = launcher.communicate(timeout=100)
    assert launcher.returncode == errors.STOPPED, err
    assert "saved; the same command continues" in out and "process 1 of 2: " in out
    assert all(gone(pid) for pid in started)
    assert [row["step"] for row in processes.rows(tmp_path)] == list(
        range(1, len(processes.rows(tmp_path)) + 1)
    )


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "launch local: runs nothing; write: jaxlm launch local -n 2 -- train ..."),
        (
            ("train", "steps=1", "--process", "0"),
            "launch local: --process is for it to say; leave it out",
        ),
        (("trian", "x"), "launch local: 'trian' is no verb of several processes; write: "),
    ],
)
def test_what_cannot_be_launched(words, message):
    code, _, err = processes.run(*LAUNCH, *words)
    assert code == errors.CONFIG and err.startswith(f"jaxlm: error: {message}")


@pytest.mark.parametrize(
    "wrong, code, message",
    [
        ("optimizer.learing_rate=1", errors.CONFIG, "did you mean optimizer.learning_rate?"),
        ("batch=7", errors.CONFIG, "7 does not split over 2 devices (data x fsdp x expert); use 6"),
        ("mesh.tensor=-1 mesh.fsdp=1 model.heads=1", errors.CONFIG, "heads=1 does not split over"),
        ("platform=tpu", errors.CONFIG, "tpu is not what this asks for, which is cpu"),
        ("--allow-chang data", errors.CONFIG, "train: no such option: --allow-chang; did you"),
        ("--process=0", errors.CONFIG, "launch local: --process is for it to say; leave it out"),
    ],
)
def test_a_mistake_in_the_command_is_said_before_anything_is_started(
    wrong, code, message, tmp_path, capfd
):
    words = processes.words(tmp_path, "steps=1", *wrong.split())
    assert cli.run([*LAUNCH, *words]) == code
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1) and message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.once
def test_what_all_processes_end_with_is_said_once(tmp_path):
    """They all say it: here that one of them found no data."""
    data = f"data.train={tmp_path}/no"
    code, _, err = processes.run(*LAUNCH, *processes.words(tmp_path, "steps=1", data))
    said = [line for line in err.splitlines() if "jaxlm: error: " in line]
    assert code == errors.DATA and len(said) == 1
    assert f"{tmp_path}/no: no such file or folder; write its whole path" in said[0]


def test_a_process_is_read_to_its_end_when_nobody_listens():
    reader, writer = os.pipe()
    os.close(reader)
    own, said = os.dup(2), io.BytesIO(b"a line\nanother\n")
    os.dup2(writer, 2)
    try:
        local.Speech().relay(said, 0)
    finally:
        os.dup2(own, 2)
        os.close(own)
        os.close(writer)
    assert not said.read()


def test_the_help_of_what_is_launched_is_said_once(capfd):
    assert cli.run([*LAUNCH, "train", "quickstart", "--help"]) == errors.DONE
    assert capfd.readouterr().out.count("Usage: jaxlm train") == 1


@pytest.mark.once
def test_the_jobs_of_the_page_run(tmp_path):
    """Those of `jaxlm launch local`, with a tiny model."""
    lines = [shlex.split(line) for line in re.findall(r"^jaxlm (launch local .*)$", PAGE, re.M)]
    assert len(lines) >= 2
    for line in lines:
        tiny = [word for word in processes.words(tmp_path)[1:] if "run_dir" not in word]
        more = ("steps=4", "data.validation=0.2", f"run_dir={tmp_path}/{line[-1]}")
        code, out, err = processes.run(*line, *tiny, *more)
        assert code == errors.DONE and "step 4 of 4, done" in out, err
