"""The report draws every column, marks what interrupts it, asks nobody and runs no foreign code."""

import json
import math
import re
import shutil
import subprocess
import sys

import pytest

from jaxlm.core.errors import DataError
from jaxlm.observe import record
from jaxlm.observe.curves import charts, marks
from jaxlm.observe.metrics import FILE, Metrics
from jaxlm.observe.report import page, write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
HOSTILE = "</script><script>console.error('ran')</script><img src=x onerror=console.error('ran')>"


def test_a_run_stopped_before_its_first_row_has_a_report(tmp_path):
    Metrics(tmp_path, primary=True).cut(0)
    assert write(tmp_path).read_text().startswith("<!doctype html>")


def rows(steps, *, lost=(), skipped_at=None):
    skipped = 0
    for step in steps:
        skipped += 3 if step == skipped_at else 0
        yield {
            "step": step,
            "loss": math.nan if step in lost else 2 + 5 / step,
            "learning_rate": 1e-3 / step,
            "grad_norm": 1.0,
            "tokens": 100 * step,
            "tokens_per_second": 50.0,
            "mfu": None,
            "seconds": 20.0,
            "compute_seconds": 15.0,
            "data_seconds": 1.0,
            "checkpoint_seconds": 2.0,
            "memory_bytes": 10**9,
            "skipped": skipped,
            "router_loss": 0.5,
        }
        if step % 50 == 0:
            bits = {"validation_bits_per_byte": 1.5, "validation_tokens": 9}
            yield {"step": step, "validation_loss": 2.5 + 5 / step, **bits}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "a<b>run"
    metrics = Metrics(folder, primary=True)
    present = [*range(10, 400, 10), *range(500, 1010, 10)]
    for row in rows(present, lost=[600], skipped_at=200):
        metrics.row(row)
    facts = record.record({"data": "ef"}, mesh={"fsdp": 8}, model={"parameters": HOSTILE})
    record.begin(folder, facts, step=0, steps=1000)
    record.begin(folder, facts, step=700, steps=1000)
    record.finish(folder, "done", step=1000)
    (folder / "config.yaml").write_text(f"name: run\n# {HOSTILE}\n")
    return folder


def test_every_column_is_drawn():
    drawn = {chart["title"]: chart["series"] for chart in charts(list(rows(range(10, 110, 10))))}
    assert [series["name"] for series in drawn["Loss"]] == ["training", "validation"]
    assert "router_loss" in drawn  # what an objective adds needs no change here
    assert "Model FLOP utilization" not in drawn  # not known on this device
    assert {"Learning rate", "Gradient norm", "Throughput", "Memory"} < set(drawn)


def test_the_parts_of_a_step_add_up_to_it():
    (split,) = (c for c in charts(list(rows(range(10, 110, 10)))) if c.get("stack"))
    for parts in zip(*(series["y"] for series in split["series"]), strict=True):
        assert sum(parts) == pytest.approx(20.0 / 10)


def test_what_interrupts_the_curves_is_marked():
    present = [*range(10, 60, 10), *range(100, 200, 10)]
    found = marks(list(rows(present, lost=[120], skipped_at=140)))
    assert found == {"skipped": [[140, 3]], "gaps": [[50, 100]], "lost": [120]}


def test_a_long_run_keeps_its_spikes_and_its_last_row():
    many = list(rows(range(1, 50_001)))
    many = [row for row in many if "loss" in row]
    many[31_234]["loss"] = 99.0
    (loss,) = (series for series in charts(many)[0]["series"] if series["name"] == "training")
    assert 99.0 in loss["y"]
    assert loss["x"][-1] == 50_000
    assert loss["x"] == sorted(loss["x"])
    assert len(loss["x"]) <= 2001


def test_the_page_asks_nobody_and_escapes_what_it_shows(run):
    text = write(run).read_text()
    assert "default-src" in text
    assert not re.findall(r"(?:src|href)=[\"']?(?!data:)\w+:", text)
    assert HOSTILE not in text
    assert "<h1>a&lt;b&gt;run</h1>" in text
    json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_a_run_that_just_began_has_a_report(tmp_path):
    (tmp_path / FILE).touch()
    assert write(tmp_path).exists()
    assert "unknown" in page("run", [], {}, "")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=FILE):
        write(tmp_path)


def test_the_report_needs_no_jax():
    code = "import sys, jaxlm.observe.report; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("shown", ["", "#log-x,log-y,smooth"])
def test_a_browser_draws_the_curves_and_has_nothing_to_complain_of(run, tmp_path, shown):
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    quiet = "--disable-background-networking --disable-component-update --enable-logging=stderr"
    address = write(run).as_uri() + shown
    command = [
        str(CHROMIUM),
        *flags.split(),
        *quiet.split(),
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    command += ["--virtual-time-budget=2000", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    drawn = re.findall(r'<section class="chart[^"]*">.*?</section>', done.stdout, re.DOTALL)
    assert len(drawn) == 8
    for chart in drawn:
        assert re.search(r'<path class="(curve|area)[^"]*" d="M[\d.]+ [\d.]+', chart)
        assert "NaN" not in chart
        for mark in ("mark-gap", "mark-resume", "mark-skip", "mark-lost"):
            assert chart.count(mark) == 1
    pressed = re.findall(r'<button id="([^"]+)" aria-pressed="true">', done.stdout)
    assert pressed == [name for name in shown.strip("#").split(",") if name]
    assert "CONSOLE" not in done.stderr


def test_what_was_planned_stands_beside_what_was_measured():
    planned = {"step_seconds": 1.2, "memory_bytes": 2e9}
    said = page("run", list(rows(range(10, 60, 10))), {"planned": planned}, "")
    assert "planned 1.2 s, measured 1.5 s (+25%)" in said
    assert "planned 2.00 GB, measured 1.00 GB (-50%)" in said
    assert "planned 1.2 s, not measured" in page("run", [], {"planned": planned}, "")
    assert "planned" not in page("run", [], {}, "")
