"""One process of two is slow, hangs or fails: it is named everywhere, and nobody waits on."""

import json
import re
import socket
from pathlib import Path

import processes
import pytest

from jaxlm.core import errors
from jaxlm.training.stragglers import slowest

HOST = socket.gethostname()
pytestmark = pytest.mark.once


def run(folder, fault, step, *more):
    """[(exit code, stdout, stderr)] of both processes, and what the record says of the end."""
    words = processes.words(folder, "model.dropout=0", *more)
    script = str(Path(__file__).with_name("faulty.py"))
    found = processes.cluster(2, fault, str(step), *words, devices=1, program=(script,))
    return found, json.loads((folder / "run" / "record.json").read_text())["status"]


def test_a_process_whose_rows_come_late_is_named(tmp_path):
    found, status = run(tmp_path, "slow", 4, "steps=12", "log.every=2")
    assert [code for code, _, _ in found] == [errors.DONE] * 2 and status == "done"
    said = (tmp_path / "run" / "log.txt").read_text()
    assert f"process 1 ({HOST}) is what the others wait for: of the last " in said
    assert f"process 0 ({HOST}) is what" not in said


def test_a_process_that_hangs_ends_all_with_their_stacks(tmp_path):
    found, status = run(tmp_path, "hang", 5, "steps=50", "watchdog=20")
    assert [code for code, _, _ in found] == [errors.WATCHDOG] * 2
    assert status.startswith("process ") and "watchdog: nothing was finished for 20 s" in status
    line = "watchdog: nothing was finished for 20 s, at step "
    assert all("Thread 0x" in err and line in err for _, _, err in found)
    # The one that waits has begun the step for which the other has no rows.
    steps = [int(re.search(r"is at step (\d+)", err)[1]) for _, _, err in found]
    assert steps == [6, 5]


def test_a_process_that_fails_ends_all_with_its_word(tmp_path):
    found, status = run(tmp_path, "raise", 5, "steps=50", "checkpoint.every=2")
    assert [code for code, _, _ in found] == [errors.INTERNAL] * 2
    assert "the shelf fell over" in status and f"process 1 ({HOST})" in status
    assert all("the shelf fell over" in err for _, _, err in found)
    found, status = run(tmp_path, "none", 0, "steps=8", "checkpoint.every=2")
    assert [code for code, _, _ in found] == [errors.DONE] * 2 and status == "done"
    assert [row["step"] for row in processes.rows(tmp_path)] == [*range(1, 9)]


def test_a_signal_before_the_first_step_of_one_ends_all(tmp_path):
    found, status = run(tmp_path, "early", 0, "steps=5")
    assert [code for code, _, _ in found] == [errors.STOPPED] * 2
    line = "SIGTERM: stopped before the first step; run the command again"
    assert all(err.count(line) == 1 and "Check failure" not in err for _, _, err in found)
    assert line in status and f"process 1 ({HOST})" in status


def test_who_is_slow_is_so_by_a_share_of_the_window():
    assert slowest([0.1, 2.0, 0.2], whole=2.1) == 1
    assert slowest([0.1, 0.25, 0.2], whole=2.1) is None
    assert slowest([2.0, 2.0, 2.1], whole=2.1) is None  # all are as slow
    assert slowest([3.0, 0.1], whole=3.0) == 0
