"""Trackers get every row of a run, keep one curve over resumes, and never stop training."""

import importlib.util
import json
import struct
import sys
import threading

import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.observe.metrics import Metrics, read
from jaxlm.observe.trackers import TRACKERS, Calls, Tracker, require, start

ROWS = [{"step": step, "loss": 10.0 / step, "note": "text", "mfu": None} for step in (1, 2, 3)]


def events(folder):
    """(step, tag, value) of TensorBoard's files: length, checksum, event, checksum, repeated."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    found = []
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            content = content[16 + length :]
    return found


def track(folder, names, *, step=0, rows=(), warn=pytest.fail):
    trackers = start(
        names, folder, name="run", config={"batch": 8, "model": {"layers": 2}}, step=step, warn=warn
    )
    metrics = Metrics(folder, trackers, primary=True, warn=warn)
    for row in rows:
        metrics.row(row)
    metrics.close()


def test_tensorboard_gets_the_numbers_without_tensorflow(tmp_path):
    track(tmp_path, ["tensorboard"], rows=ROWS)
    expected = [(row["step"], "loss", pytest.approx(row["loss"])) for row in ROWS]
    assert events(tmp_path / "tensorboard") == expected
    assert "tensorflow" not in sys.modules


def test_a_resumed_run_keeps_its_id(tmp_path):
    ids = []
    for step in (0, 2):
        track(tmp_path, ["tensorboard"], step=step)
        ids.append(json.loads((tmp_path / "tracker.json").read_text())["id"])
    assert ids[0] == ids[1]


def broken(at):
    def begin():
        def fail(*_):
            raise ConnectionError("no route\nto host")

        if at == "start":
            fail()
        return Calls(fail if at == "row" else lambda *_: None, fail)

    return begin


@pytest.mark.parametrize("at", ["start", "row", "close"])
def test_a_tracker_that_fails_costs_one_warning(tmp_path, at):
    warnings = []
    metrics = Metrics(tmp_path, [Tracker("broken", broken(at), warnings.append)], primary=True)
    for row in ROWS:
        metrics.row(row)
    metrics.close()
    assert [row["step"] for row in read(tmp_path)] == [1, 2, 3]
    assert len(warnings) == 1
    assert "broken" in warnings[0]
    assert "\n" not in warnings[0]


def test_a_tracker_that_hangs_does_not_hold_the_run(tmp_path):
    warnings, never = [], threading.Event()
    hanging = Tracker("slow", lambda: never.wait(), warnings.append, seconds_to_end=0.01)  # pyright: ignore[reportArgumentType]
    metrics = Metrics(tmp_path, [hanging], primary=True)
    for row in ROWS:
        metrics.row(row)
    metrics.close()
    never.set()
    assert len(warnings) == 1


def test_an_unknown_tracker_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="log.trackers: no 'tensorbord'; use one of tensorboard"):
        require(["tensorbord"])


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_refused_with_the_command_that_installs_it(name):
    if importlib.util.find_spec(TRACKERS[name][0]):
        require([name])
    else:
        with pytest.raises(ConfigError, match=rf"pip install -e '.\[{name}\]'"):
            require([name])


@pytest.mark.parametrize("name", TRACKERS)
def test_each_runs_offline_resumes_and_writes_nothing_of_the_environment(
    tmp_path, monkeypatch, name
):
    monkeypatch.setenv("SOME_TOKEN", "s3cr3t-value")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip(TRACKERS[name][0])  # here, because some read these when imported
    track(tmp_path, [name], rows=ROWS)
    track(tmp_path, [name], step=2, rows=ROWS[2:])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name not in ("tracker.json", "metrics.jsonl") for path in files)
    assert not [path for path in files if b"s3cr3t-value" in path.read_bytes()]
