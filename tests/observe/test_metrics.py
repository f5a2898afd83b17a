"""metrics.jsonl: valid JSON, cut back to the step that a run resumes from, and never in the way."""

import json
import math
import os
import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core.errors import DataError
from jaxlm.observe.metrics import FILE, Metrics, read


def write(folder, steps):
    metrics = Metrics(folder, primary=True)
    for step in steps:
        metrics.row({"step": step, "loss": step / 7})
    return (folder / FILE).read_bytes() if steps else b""


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


def test_rows_come_back_and_every_line_is_strict_json(tmp_path):
    numbers = {"step": 3, "grad_norm": math.inf, "low": -math.inf, "mfu": None, "tokens": 2}
    arrays = {"rate": np.float32(0.5), "per_layer": np.array([1.0, np.inf])}
    Metrics(tmp_path, primary=True).row({**numbers, **arrays, "loss": math.nan})
    for line in (tmp_path / FILE).read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    (row,) = read(tmp_path)
    assert math.isnan(row.pop("loss"))
    assert row == {**numbers, "rate": 0.5, "per_layer": [1.0, math.inf]}


@given(kept=st.integers(0, 9), lost=st.integers(0, 80))
def test_after_a_kill_anywhere_the_cut_file_is_the_uninterrupted_one(tmp_path_factory, kept, lost):
    whole = tmp_path_factory.mktemp("whole")
    expected = write(whole, range(1, kept + 1))
    killed = tmp_path_factory.mktemp("killed")
    content = write(killed, range(1, kept + 4))
    end = max(len(expected), len(content) - lost)  # what a checkpoint stands for was written
    (killed / FILE).write_bytes(content[:end])
    Metrics(killed, primary=True).cut(kept)
    assert (killed / FILE).read_bytes() == expected
    assert write(killed, [kept + 1]).startswith(expected)


def test_scores_that_are_made_again_are_there_once(tmp_path):
    metrics = Metrics(tmp_path, primary=True)
    rows = [{"step": 0, "score": 1.0}, {"step": 1, "loss": 2.0}, {"step": 1, "score": 3.0}]
    for row in rows:
        metrics.row(row)
    for step, again, left in ((1, False, 3), (1, True, 2), (0, False, 1), (0, True, 0)):
        Metrics(tmp_path, primary=True).cut(step, again=again)
        assert read(tmp_path) == rows[:left]


def test_reading_leaves_a_torn_last_line_out_and_refuses_one_in_the_middle(tmp_path):
    content = write(tmp_path, [1, 2])
    (tmp_path / FILE).write_bytes(content + b'{"step": 3, "lo')
    assert [row["step"] for row in read(tmp_path)] == [1, 2]
    (tmp_path / FILE).write_bytes(b'{"step": 1, "lo\n' + content)
    with pytest.raises(DataError, match=f"{FILE}:1: "):
        read(tmp_path)


def test_rows_are_brought_to_the_disk_before_a_save(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    metrics = Metrics(tmp_path, primary=True)
    metrics.row({"step": 1})
    metrics.sync()
    assert synced == [(tmp_path / FILE).stat().st_ino]


def test_a_file_that_needs_no_cut_is_left_alone(tmp_path):
    write(tmp_path, [1, 2])
    before = (tmp_path / FILE).stat()
    Metrics(tmp_path, primary=True).cut(2)
    assert (tmp_path / FILE).stat().st_ino == before.st_ino


def test_only_the_primary_process_writes(tmp_path):
    other = Metrics(tmp_path, primary=False)
    other.cut(0)
    other.row({"step": 1})
    other.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_one_warning_and_no_row(tmp_path):
    warnings = []
    metrics = Metrics(tmp_path, primary=True, warn=warnings.append)
    metrics.row({"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / FILE).stat().st_size + 5, hard))
    try:
        metrics.row({"step": 2})
        metrics.row({"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [row["step"] for row in read(tmp_path)] == [1]
    metrics.row({"step": 4})
    metrics.close()
    assert [row["step"] for row in read(tmp_path)] == [1, 2, 3, 4]
    assert len(warnings) == 1
