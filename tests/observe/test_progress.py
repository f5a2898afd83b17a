"""A run is never silent, says the same on every screen and in its log, and leaves no mess."""

import io
import os
import threading

import pytest

from jaxlm.observe.line import line
from jaxlm.observe.panel import Pace, View, spark
from jaxlm.observe.progress import FILE, Progress

ROW = {
    "step": 20,
    "loss": 2.5,
    "learning_rate": 3e-4,
    "grad_norm": 0.5,
    "tokens": 81920,
    "tokens_per_second": 12345.0,
    "mfu": None,
    "seconds": 4.0,
    "memory_bytes": 3_200_000_000,
    "skipped": 0,
    "z_loss": 0.01,
}


class Screen(io.StringIO):
    """A stream that tells when a text was written to it."""

    def __init__(self, wanted: str):
        super().__init__()
        self.wanted, self.seen = wanted, threading.Event()

    def write(self, text):
        if self.wanted in text:
            self.seen.set()
        return super().write(text)


def progress(folder, stream, *, primary=True, quiet=60.0, steps=100):
    return Progress(folder, name="run", steps=steps, primary=primary, stream=stream, quiet=quiet)


def test_the_log_holds_the_lines_of_the_screen(tmp_path):
    screen = io.StringIO()
    with progress(tmp_path, screen) as voice:
        voice.say("8 devices\nmesh fsdp=8")
        voice.row(ROW)
        voice.warn("step 21 skipped")
    shown = screen.getvalue().splitlines()
    logged = (tmp_path / FILE).read_text().splitlines()
    assert [text.split(" ", 1)[1] for text in logged] == shown
    assert shown[-1] == "warning: step 21 skipped"


def test_a_line_tells_what_is_known_and_leaves_out_what_is_not():
    text = line(ROW, 100, eta=75.0)
    for part in ("step  20/100", "loss 2.5000", "12.3k tok/s", "z_loss 0.01", "1 m 15 s left"):
        assert part in text
    assert "mfu" not in text
    assert "skipped" not in text


def test_a_long_phase_is_heard_and_its_end_is_told(tmp_path):
    screen = Screen("compiling... ")
    with progress(tmp_path, screen, quiet=0.02) as voice:
        with voice.phase("compiling"):
            assert screen.seen.wait(60)
        assert screen.getvalue().splitlines()[-1].startswith("compiling: ")
    assert "compiling... " in (tmp_path / FILE).read_text()


def test_silence_outside_of_phases_is_broken_too(tmp_path):
    screen = Screen("since step 20/100")
    with progress(tmp_path, screen, quiet=0.02) as voice:
        voice.row(ROW)
        assert screen.seen.wait(60)


def test_other_processes_only_warn(tmp_path):
    screen = io.StringIO()
    with progress(tmp_path, screen, primary=False) as voice, voice.phase("compiling"):
        voice.say("hello")
        voice.row(ROW)
        voice.warn("no room")
    assert screen.getvalue() == "warning: no room\n"
    assert not list(tmp_path.iterdir())


def test_an_exception_passes_and_leaves_no_thread(tmp_path):
    before = threading.active_count()
    voice = progress(tmp_path, io.StringIO())
    with pytest.raises(KeyError), voice, voice.phase("compiling"):
        raise KeyError
    assert threading.active_count() == before
    voice.say("said after the end")
    assert "said after the end" in (tmp_path / FILE).read_text()


def test_control_characters_and_a_narrow_encoding_do_no_harm(tmp_path):
    raw = io.BytesIO()
    with progress(tmp_path, io.TextIOWrapper(raw, encoding="ascii", write_through=True)) as voice:
        voice.warn("file \x1b[2Jä.txt")
        assert raw.getvalue() == b"warning: file \\x1b[2J\\xe4.txt\n"


def test_a_screen_or_a_disk_that_goes_away_does_not_stop_the_run(tmp_path):
    screen = io.StringIO()
    screen.close()
    with progress(tmp_path, screen) as voice:
        voice.row(ROW)
    assert "loss 2.5000" in (tmp_path / FILE).read_text()
    blocked = tmp_path / "file"
    blocked.touch()
    with progress(blocked, screen := io.StringIO()) as voice:
        voice.row(ROW)
        voice.row(ROW)
    assert screen.getvalue().count("warning") == 1
    assert screen.getvalue().count("loss 2.5000") == 2


def on_terminal(folder, monkeypatch, kind, steps=100):
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setenv("COLUMNS", "100")
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        found = []
        reader = threading.Thread(target=lambda: found.extend(iter(lambda: _read(ours), b"")))
        reader.start()
        with progress(folder, stream, steps=steps) as voice:
            if not steps:
                voice.expect(40)
            voice.row(ROW)
    reader.join()
    os.close(ours)
    return b"".join(found).decode()


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other side is closed
        return b""


def test_a_terminal_gets_a_panel_and_keeps_its_cursor(tmp_path, monkeypatch):
    shown = on_terminal(tmp_path, monkeypatch, "xterm-256color")
    for part in ("jaxlm", "2.5000", "12.3k tok/s", "3.20 GB", "step 20 of 100", "20%"):
        assert part in shown
    assert "\x1b[?25l" not in shown  # hidden, it would stay so after kill -9
    assert "loss 2.5000" in (tmp_path / FILE).read_text()


def test_the_panel_waits_for_the_number_of_steps(tmp_path, monkeypatch):
    shown = on_terminal(tmp_path, monkeypatch, "xterm-256color", steps=0)
    assert "step 20 of 40" in shown
    assert "50%" in shown


def test_a_dumb_terminal_gets_lines(tmp_path, monkeypatch):
    shown = on_terminal(tmp_path, monkeypatch, "dumb")
    assert "loss 2.5000" in shown
    assert "\x1b" not in shown


def test_the_end_is_foretold_from_the_rows_without_the_one_that_compiled():
    pace = Pace()
    pace.update(10, 500.0)
    assert pace.left(100) is None
    pace.update(20, 5.0)
    assert pace.left(100) == pytest.approx(80 * 0.5)
    pace.update(20, 900.0)  # an evaluation at the same step says nothing of the pace
    assert pace.left(100) == pytest.approx(80 * 0.5)


def test_the_spark_falls_with_the_loss():
    view = View("run", 100)
    for step in range(1, 60):
        view.update({"step": step, "loss": 1.0 / step}, None)
    curve = spark(view.losses)
    assert list(curve) == sorted(curve, reverse=True)
    assert len(curve) <= 16
