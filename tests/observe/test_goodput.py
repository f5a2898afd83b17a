import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.observe import goodput, metrics
from jaxlm.observe.goodput import Clock, read, spent
from tests import processes

SECONDS = st.floats(0, 100)


def start(time, step):
    return {"start": time, "step": step}


def row(time, step, **seconds):
    return {"time": time, "step": step, "seconds": seconds}


def test_steps_after_the_one_that_a_start_goes_on_from_are_lost():
    found = spent(
        [
            start(0, 0),
            row(10, 0, start=7, compile=3),
            row(30, 10, train=18, data=2),
            row(50, 20, train=20),
            start(80, 15),
            row(90, 15, start=6, restore=4),
            row(100, 20, train=10),
            start(101, 0),  # whose checkpoints were gone
            row(111, 5, train=10),
        ]
    )
    assert found.lost_steps == 5 + 20
    assert found.seconds == pytest.approx(
        {"train": 10, "lost": 48, "start": 13, "compile": 3, "data": 2, "restore": 4, "idle": 31}
    )
    assert found.wall == pytest.approx(111)
    assert found.share == pytest.approx(10 / 111)
    assert goodput.line(found).startswith("9.0% of 1 m 51 s: lost 43.2%, idle 27.9%")
    assert goodput.line(found).endswith("; 25 steps were made again")


@given(st.lists(st.tuples(SECONDS, st.integers(0, 9), st.lists(SECONDS, max_size=4)), max_size=5))
def test_whatever_happens_the_parts_add_up_to_the_wall_time(starts):
    lines, now, step = [], 1000.0, 0
    for gap, back, trained in starts:
        now, step = now + gap, max(0, step - back)
        lines.append(start(now, step))
        for seconds in trained:
            now, step = now + seconds, step + 3
            lines.append(row(now, step, train=seconds))
    found = spent(lines)
    assert found.wall == pytest.approx(now - lines[0]["start"] if lines else 0, abs=1e-6)
    assert all(value >= 0 for value in found.seconds.values())


def test_every_moment_has_one_cause(tmp_path):
    clock = Clock(tmp_path, primary=True)
    clock.begin(0)
    with clock.within("evaluate"), clock.within("compile"):
        pass
    clock.turn("train")
    clock.write(1)
    with (tmp_path / goodput.FILE).open("a") as file:
        file.write('{"time": 1, "st')  # torn
    Clock(tmp_path, primary=True).begin(0)
    assert [line.get("step") for line in read(tmp_path)] == [0, 1, 0]
    first, last, _ = read(tmp_path)
    assert set(last["seconds"]) == {"start", "evaluate", "compile", "train"}
    assert sum(last["seconds"].values()) == pytest.approx(last["time"] - first["start"], abs=1e-3)
    assert clock.spent.seconds == pytest.approx(spent(read(tmp_path)[:2]).seconds)
    assert not list(Clock(tmp_path, primary=False).spent.seconds)


@pytest.mark.once
def test_a_run_that_is_killed_and_goes_on_knows_where_its_time_went(tmp_path):
    words = processes.words(tmp_path, "steps=9999", "checkpoint.every=100", "data.validation=0.2")
    killed = processes.start(*words)
    kept = tmp_path / "run" / "checkpoints" / "100"
    while not kept.exists() or len(metrics.read(tmp_path / "run")) < 120:
        assert killed.poll() is None, killed.communicate()
    killed.kill()
    killed.communicate()
    seen = metrics.read(tmp_path / "run")[-1]["step"]
    code, out, err = processes.run(*words, "steps=" + str(seen + 3))
    assert code == 0, err
    folder = tmp_path / "run"
    lines = read(folder)
    begun, again = (line for line in lines if "start" in line)
    last = [line["step"] for line in lines[: lines.index(again)]][-1]
    found = spent(lines)
    assert begun["step"] == 0 and again["step"] % 100 == 0
    assert found.lost_steps == last - again["step"] > 0
    assert found.wall == pytest.approx(lines[-1]["time"] - begun["start"], abs=0.1)
    assert set(found.seconds) == set(goodput.CAUSES)
    shares = [row["goodput"] for row in processes.rows(tmp_path) if "loss" in row]
    assert all(0 <= share < 1 for share in shares)
    told = goodput.line(found).partition(" of ")[0]
    assert f"goodput {told} of " in out + err
    assert told in (folder / "report.html").read_text()
    assert json.loads((folder / "record.json").read_text())["status"] == "done"
