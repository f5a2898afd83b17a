"""A run that is stopped, killed or crashed and started again is the run that never was."""

import random
import signal
import time

import processes
import pytest

from jaxlm.checkpoint import inspect
from jaxlm.core import errors

CLOCKS = ("seconds", "memory", "mfu", "goodput")


def _facts(folder, name):
    """The rows without what a clock or the machine decides."""
    return [
        {key: value for key, value in row.items() if not any(word in key for word in CLOCKS)}
        | {"tokens_per_second": None}
        for row in processes.rows(folder, name)
    ]


def _digest(folder, name):
    return inspect.digest(folder / name / "checkpoints")


@pytest.mark.once
def test_twenty_kills_leave_the_bits_of_a_run_never_interrupted(tmp_path):
    words = ("steps=60", "checkpoint.every=3", "data.validation=0.3", "evaluate.every=20")
    code, _, err = processes.run(*processes.words(tmp_path, *words, name="whole"), devices=2)
    assert code == errors.DONE, err
    rng = random.Random(0)
    for kill in range(20):
        before = len(processes.rows(tmp_path, "torn"))
        process = processes.start(*processes.words(tmp_path, *words, name="torn"), devices=2)
        # A quarter of the kills come while it starts, the others some steps after it went on.
        wanted = 0 if kill % 4 == 0 else rng.randint(1, 4)
        while process.poll() is None and len(processes.rows(tmp_path, "torn")) < before + wanted:
            before = min(before, len(processes.rows(tmp_path, "torn")))  # cut back on resume
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 4) if wanted == 0 else rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
    code, _, err = processes.run(*processes.words(tmp_path, *words, name="torn"), devices=2)
    assert code == errors.DONE, err
    assert _digest(tmp_path, "torn") == _digest(tmp_path, "whole")
    assert _facts(tmp_path, "torn") == _facts(tmp_path, "whole")
    left = [path.name for path in (tmp_path / "torn" / "checkpoints").iterdir()]
    assert sorted(left) == ["57", "60"]


def test_a_signal_saves_and_the_same_command_continues(tmp_path):
    more = "checkpoint.every=0", "log.every=5", "data.validation=0.3", "evaluate.every=1"
    words = processes.words(tmp_path, "steps=400", *more, "evaluate.batches=1")
    process = processes.start(*words)
    while len(processes.rows(tmp_path)) < 18 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == errors.STOPPED, err
    assert "stopped by SIGTERM" in out
    step, _ = _digest(tmp_path, "run")
    assert 15 <= step < 400
    code, out, err = processes.run(*words, "steps=" + str(step + 3))
    assert code == errors.DONE, err
    assert "steps 400 ->" in out  # the cosine schedule ends elsewhere now, and the run says so
    assert _digest(tmp_path, "run")[0] == step + 3
    scored = [row["step"] for row in processes.rows(tmp_path) if "validation_loss" in row]
    assert scored == list(range(1, step + 4))  # that at which it was stopped too


def test_a_second_interrupt_leaves_at_once_and_corrupts_nothing(tmp_path):
    words = processes.words(tmp_path, "steps=100000", "checkpoint.every=10")
    process = processes.start(*words)
    while not (tmp_path / "run" / "checkpoints" / "10").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate()
    # The first may have been served before the second came: then everything is saved.
    assert process.returncode in (errors.INTERRUPTED, errors.STOPPED)
    step, _ = _digest(tmp_path, "run")
    assert not inspect.verify(tmp_path / "run" / "checkpoints", step).problems


def test_a_second_run_in_an_owned_directory_is_refused(tmp_path):
    words = processes.words(tmp_path, "steps=100000", "checkpoint.every=0")
    owner = processes.start(*words)
    while not processes.rows(tmp_path) and owner.poll() is None:
        time.sleep(0.01)
    code, _, err = processes.run(*words)
    owner.kill()
    owner.communicate()
    assert code == errors.CHECKPOINT
    assert str(owner.pid) in err and len(err.splitlines()) == 1
