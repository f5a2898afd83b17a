"""A job here ends as its processes do, leaves none behind, and goes on when launched again."""

import os
import re
import shlex
import signal
import time
from pathlib import Path

import processes
import pytest

from jaxlm.core import errors

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
            ("train", "x", "--process", "0"),
            "launch local: --process is for it to say; leave it out",
        ),
        (("trian", "x"), "launch local: 'trian' is no verb of several processes; write: "),
    ],
)
def test_what_cannot_be_launched(words, message):
    code, _, err = processes.run(*LAUNCH, *words)
    assert code == errors.CONFIG and err.startswith(f"jaxlm: error: {message}")


def test_a_configuration_error_is_everyones(tmp_path):
    code, _, err = processes.run(*LAUNCH, *processes.words(tmp_path, "optimizer.learing_rate=1"))
    assert code == errors.CONFIG and "did you mean optimizer.learning_rate?" in err


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
